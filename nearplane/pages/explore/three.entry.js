export {
  AmbientLight, BoxGeometry, BufferGeometry, Color, DoubleSide, EdgesGeometry, Float32BufferAttribute, Group, InstancedMesh,
  Line, LineBasicMaterial, LineDashedMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, MeshLambertMaterial, PerspectiveCamera, OrthographicCamera,
  DirectionalLight, Scene, SphereGeometry, SRGBColorSpace, Vector3, WebGLRenderer, ConeGeometry, CylinderGeometry, Quaternion,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
