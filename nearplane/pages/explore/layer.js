// A section of a real layer's lattice.
export function showLayer(place, data) {
  place.replaceChildren();
}
