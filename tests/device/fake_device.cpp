// A second device for the tests. Its memory is the host's, so that the CPU's kernels compute on it, with the same
// bytes; but its tensors are of another device, so that an operator that is given tensors of both is an error. Memory
// that is held at the same time, and copies to and from the CPU, are counted; beyond a limit there is none. Copies on
// another stream than the first are done when that is waited for; until then their target holds nothing of use.
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <functional>
#include <unordered_map>
#include <vector>

namespace {

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);
std::atomic<int64_t> held{0}, peak{0}, limit{-1}, to_device{0}, to_host{0};

void count(int64_t bytes) {
  const int64_t now = held += bytes;
  for (int64_t most = peak; now > most && !peak.compare_exchange_weak(most, now);) {}
}

void require(int64_t bytes) {
  TORCH_CHECK_WITH(OutOfMemoryError, limit < 0 || held + bytes <= limit, "fake out of memory: ", bytes,
                   " bytes more than ", held.load(), " of ", limit.load());
}

// Memory of the device: what the CPU's allocator gave, counted as long as it is held.
struct Block {
  c10::Storage memory;
  int64_t bytes;
  explicit Block(c10::Storage from) : memory(std::move(from)), bytes(int64_t(memory.nbytes())) {
    require(bytes);
    count(bytes);
  }
  ~Block() { count(-bytes); }
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(c10::Storage(c10::Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), true));
    return {const_cast<void*>(block->memory.data()), block, &remove, kDevice};
  }
  static void remove(void* block) { delete static_cast<Block*>(block); }
  c10::DeleterFnPtr raw_deleter() const override { return &remove; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);

c10::Storage on_device(const c10::Storage& cpu) {
  auto* block = new Block(cpu);
  c10::DataPtr data(const_cast<void*>(cpu.data()), block, &Allocator::remove, kDevice);
  return c10::Storage(c10::Storage::use_byte_size_t(), cpu.nbytes(), std::move(data), &allocator, true);
}

at::Tensor tensor_of(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
  at::Tensor made =
      at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

// What the tensors of one call are on the CPU, and back.
class Call {
 public:
  Call(std::string operation, bool both) : name(std::move(operation)), copies(both) {}

  at::Tensor on_cpu(const at::Tensor& given) {
    if (!given.defined()) return given;
    if (!given.is_privateuseone()) {
      TORCH_CHECK(copies || given.dim() == 0, "a tensor ", given.sizes(),
                  " of the CPU among those of the fake device in ", name);
      return given;
    }
    auto found = made.find(given.unsafeGetTensorImpl());
    if (found != made.end()) return found->second;
    const c10::Storage& own = given.storage();
    auto twin = twins.find(own.unsafeGetStorageImpl());
    if (twin == twins.end()) {
      c10::DataPtr data(const_cast<void*>(own.data()), c10::Device(c10::DeviceType::CPU));
      c10::Storage cpu(c10::Storage::use_byte_size_t(), own.nbytes(), std::move(data), c10::GetCPUAllocator(), true);
      twin = twins.emplace(own.unsafeGetStorageImpl(), cpu).first;
      owners.emplace(cpu.unsafeGetStorageImpl(), own);
    }
    at::Tensor cpu = tensor_of(twin->second, c10::DispatchKey::CPU, given);
    made.emplace(given.unsafeGetTensorImpl(), cpu);
    given_as.emplace(cpu.unsafeGetTensorImpl(), given);
    return cpu;
  }

  at::Tensor back(const at::Tensor& result) {
    if (!result.defined() || !result.device().is_cpu()) return result;
    auto given = given_as.find(result.unsafeGetTensorImpl());
    if (given != given_as.end()) return given->second;
    auto owner = owners.find(result.storage().unsafeGetStorageImpl());
    if (owner != owners.end()) return tensor_of(owner->second, c10::DispatchKey::PrivateUse1, result);
    auto seen = new_storages.find(result.storage().unsafeGetStorageImpl());
    if (seen == new_storages.end())
      seen = new_storages.emplace(result.storage().unsafeGetStorageImpl(), on_device(result.storage())).first;
    return tensor_of(seen->second, c10::DispatchKey::PrivateUse1, result);
  }

  // What the call made of the shapes and the memory of its own arguments.
  void finish() {
    for (auto& [cpu, given] : given_as) {
      c10::TensorImpl* own = given.unsafeGetTensorImpl();
      const at::Tensor& now = made.at(own);
      auto owner = owners.find(now.storage().unsafeGetStorageImpl());
      if (now.storage().data() != own->storage().data() && owner != owners.end())
        own->set_storage_keep_dtype(on_device(now.storage()));
      if (now.sizes() != own->sizes() || now.strides() != own->strides())
        own->set_sizes_and_strides(now.sizes(), now.strides(), now.storage_offset());
    }
  }

 private:
  std::string name;
  bool copies;
  std::unordered_map<c10::TensorImpl*, at::Tensor> made, given_as;
  std::unordered_map<c10::StorageImpl*, c10::Storage> twins, owners, new_storages;
};

// The stream that operators are given to, how many there are, and what the others have not done yet.
thread_local c10::StreamId stream = 0;
std::atomic<c10::StreamId> streams{1};
thread_local std::vector<std::function<void()>> waiting;

void wait() {
  std::vector<std::function<void()>> now;
  now.swap(waiting);
  for (const auto& work : now) work();
}

// Copies may be between devices; all other operators may not.
at::Tensor copy(const at::Tensor& from, const at::Tensor& to, bool) {
  const int64_t bytes = int64_t(from.numel() * from.element_size());
  if (to.is_privateuseone() && !from.is_privateuseone()) to_device += bytes;
  if (!to.is_privateuseone() && from.is_privateuseone()) to_host += bytes;
  Call call("copy_", true);
  if (stream) {
    call.on_cpu(to).fill_(77);
    waiting.push_back([from, to] {
      Call later("copy_", true);
      later.on_cpu(to).copy_(later.on_cpu(from));
    });
    return to;
  }
  call.on_cpu(to).copy_(call.on_cpu(from));
  return to;
}

// Put convert(tensor) in the place of every tensor of a value.
template <class Convert>
void each_tensor(c10::IValue& value, const Convert& convert) {
  if (value.isTensor()) {
    value = convert(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(convert(tensor));
    value = list;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
      list.push_back(tensor ? std::optional<at::Tensor>(convert(*tensor)) : std::nullopt);
    value = list;
  }
}

void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op.schema().name(), false);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); i++) {
    c10::IValue& value = (*stack)[i];
    each_tensor(value, [&](const at::Tensor& tensor) { return call.on_cpu(tensor); });
    if (value.isDevice() && value.toDevice().is_privateuseone()) value = c10::Device(c10::DeviceType::CPU);
  }
  op.callBoxed(stack);
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); i++)
    each_tensor((*stack)[i], [&](const at::Tensor& tensor) { return call.back(tensor); });
  call.finish();
}

// As those of CUDA, tensors may become the CPU's, and back, by an assignment to .data.
bool may_become(const at::Tensor&, const at::Tensor&) { return true; }

c10::Stream stream_of(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }

// One device. What is given to its first stream is done at once.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream_of(stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream_of(0); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream_of(streams++); }
  c10::Stream exchangeStream(c10::Stream other) const override {
    const c10::Stream before = stream_of(stream);
    stream = other.id();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override { wait(); }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { wait(); }
  void synchronizeEvent(void*) const override { wait(); }
  void synchronizeDevice(c10::DeviceIndex) const override { wait(); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
};

const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", &copy);
  m.impl("_has_compatible_shallow_copy_type", &may_become);
  // What the CPU has a kernel of its own for torch would compose of others, with other last digits.
  const auto on_cpu = [] { return torch::CppFunction::makeFromBoxedFunction<&compute>(); };
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || !name.name.starts_with("aten::") || name.name.starts_with("aten::empty")) continue;
    const bool composed = op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                          op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
    if (composed && op->hasKernelForDispatchKey(c10::DispatchKey::CPU))
      m.impl(c10::toString(name).c_str() + 6, on_cpu());
  }
  // these choose a kernel by the device
  m.impl("convolution", on_cpu());
  m.impl("convolution_backward", on_cpu());
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }

extern "C" {
int64_t fake_held() { return held; }
int64_t fake_peak() { return peak; }
int64_t fake_to_device() { return to_device; }
int64_t fake_to_host() { return to_host; }
void fake_limit(int64_t bytes) { limit = bytes; }
void fake_reset() {
  peak = held.load();
  to_device = to_host = 0;
}
}
