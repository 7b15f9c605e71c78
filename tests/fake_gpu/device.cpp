// A device named "cuda" whose memory is the host's and whose kernels are torch's own for the CPU; see __init__.py.
//
// Every operation that reaches the device is run on CPU tensors over the same memory. Before that, what a GPU would
// refuse is refused: tensors of different devices, and, while a graph is captured, whatever waits for the device.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr auto GPU = c10::DeviceType::CUDA;
constexpr c10::DeviceIndex N_DEVICES = 2;
thread_local c10::DeviceIndex current = 0;

// Bytes held by tensors of each device, and the most so far.
std::array<std::atomic<int64_t>, N_DEVICES> held, most;

// What keeps a piece of the host's memory for as long as the device has it, counted.
template <typename Owner>
struct Kept {
  Owner owner;
  int64_t bytes;
  c10::DeviceIndex device;

  Kept(Owner owned, size_t size, c10::DeviceIndex index)
      : owner(std::move(owned)), bytes(static_cast<int64_t>(size)), device(index) {
    const int64_t now = held[device] += bytes;
    most[device] = std::max(most[device].load(), now);
  }
  ~Kept() { held[device] -= bytes; }

  static c10::DataPtr of(void* data, Owner owned, size_t size, c10::DeviceIndex index) {
    return {data, new Kept(std::move(owned), size, index), [](void* kept) { delete static_cast<Kept*>(kept); },
            {GPU, index}};
  }
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto host = at::getCPUAllocator()->allocate(bytes);
    void* data = host.get();
    return Kept<c10::DataPtr>::of(data, std::move(host), bytes, current);
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<GPU> {
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {GPU, current}; }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::DeviceIndex deviceCount() const noexcept override { return N_DEVICES; }
};

// That there is a device at all, which autograd and indexing by host tensors ask. Importing torch has made and kept the
// hooks of a torch without one, so these are laid over those: neither has data.
struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return N_DEVICES; }
  int getNumGPUs() const override { return N_DEVICES; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return at::getCPUAllocator(); }
};

// --- graphs: what was run between `begin` and `end` is run again by `replay`, on the same memory

struct Launch {
  c10::OperatorHandle op;
  std::vector<c10::IValue> given, made;
};
using Graph = std::vector<Launch>;
std::vector<Graph> graphs;
bool capturing = false;

// Beside pointwise operations, what takes a number that is a tensor on the host.
const std::set<std::string> TAKES_NUMBERS = {
    "aten::fill_", "aten::masked_fill_", "aten::masked_fill", "aten::index_fill_", "aten::where",
    "aten::floor_divide", "aten::floor_divide_",
};

// What the host has to wait for.
const std::set<std::string> WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::_linalg_check_errors",
    "aten::histc", "aten::nonzero.out", "aten::masked_select.out",
};

// --- tensors

c10::intrusive_ptr<at::TensorImpl> tensor_like(const at::Tensor& shaped, c10::Storage storage, c10::DispatchKey key) {
  auto made = c10::make_intrusive<at::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), shaped.dtype());
  made->set_sizes_and_strides(shaped.sizes(), shaped.strides(), shaped.storage_offset());
  return made;
}

at::Tensor flagged(c10::intrusive_ptr<at::TensorImpl> made, const at::Tensor& like) {
  at::Tensor tensor(std::move(made));
  if (like.is_conj()) tensor._set_conj(true);
  if (like.is_neg()) tensor._set_neg(true);
  return tensor;
}

// The tensor as the CPU sees it: same memory.
at::Tensor on_host(const at::Tensor& tensor) {
  const auto& own = tensor.storage();
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), own.nbytes(),
      c10::DataPtr(own.mutable_data(), c10::Device(c10::DeviceType::CPU)), at::getCPUAllocator(), /*resizable=*/true);
  return flagged(tensor_like(tensor, std::move(storage), c10::DispatchKey::CPU), tensor);
}

// What the CPU allocated, as the device's.
c10::Storage taken_over(const at::Tensor& tensor, c10::Device device) {
  const auto& own = tensor.storage();
  auto data = Kept<c10::Storage>::of(own.mutable_data(), own, own.nbytes(), device.index());
  return c10::Storage(c10::Storage::use_byte_size_t(), own.nbytes(), std::move(data), &memory, /*resizable=*/true);
}

// Whether it was a number of Python's.
bool is_number(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_wrapped_number(); }

struct Seen {
  at::Tensor device, host;
};

struct Call {
  const c10::OperatorHandle& op;
  std::vector<Seen> seen;
  std::optional<c10::Device> device;
  std::string stranger;  // why a tensor of the CPU must not be here

  void notice(const at::Tensor& tensor, bool index, bool copies) {
    if (!tensor.defined()) return;
    if (tensor.device().type() == GPU) {
      TORCH_CHECK(copies || !device || *device == tensor.device(), op.schema().name(), ": tensors on ", *device, " and ",
                  tensor.device());
      device = tensor.device();
    } else if (!index && (tensor.dim() > 0 || !(is_number(tensor) || op.hasTag(at::Tag::pointwise) || TAKES_NUMBERS.count(op.schema().name())))) {
      stranger = "a tensor of " + std::to_string(tensor.dim()) + " dimensions on the CPU";
    }
  }

  at::Tensor lowered(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != GPU) return tensor;
    seen.push_back({tensor, on_host(tensor)});
    return seen.back().host;
  }

  at::Tensor raised(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != c10::DeviceType::CPU) return tensor;
    for (const auto& [before, host] : seen)
      if (host.is_same(tensor)) return before;
    for (const auto& [before, host] : seen)
      if (host.storage().is_alias_of(tensor.storage()))
        return flagged(tensor_like(tensor, before.storage(), c10::DispatchKey::CUDA), tensor);
    TORCH_CHECK(device, op.schema().name(), ": made a tensor, but on which device?");
    return flagged(tensor_like(tensor, taken_over(tensor, *device), c10::DispatchKey::CUDA), tensor);
  }

  // Outputs that the operation gave another size.
  void resize() {
    for (auto& [before, host] : seen) {
      auto* own = before.unsafeGetTensorImpl();
      if (host.storage().data() != before.storage().data())
        own->set_storage_keep_dtype(taken_over(host, before.device()));
      if (host.sizes() != before.sizes() || host.strides() != before.strides() ||
          host.storage_offset() != before.storage_offset())
        own->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }
};

template <typename F>
c10::IValue mapped(const c10::IValue& value, F&& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(change(tensor));
    return tensors;
  }
  if (value.isList()) {
    const auto list = value.toList();
    auto changed = list.copy();
    for (size_t k = 0; k < list.size(); k++)
      if (list.get(k).isTensor()) changed.set(k, change(list.get(k).toTensor()));
    return changed;
  }
  return value;
}

void run(const c10::OperatorHandle& op, std::vector<c10::IValue>& given, std::vector<c10::IValue>& made) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  const bool copies = name == "aten::copy_" || name == "aten::_copy_from" || name == "aten::set_";
  const bool indexes = name == "aten::index" || name.find("index_put") != std::string::npos ||
                       name.find("_index_put_impl_") != std::string::npos;
  Call call{op, {}, {}, {}};
  for (size_t k = 0; k < given.size(); k++) {
    const bool free = copies || (indexes && given[k].isList()) || (indexes && k == 2 && given[k].isTensor() &&
                                                                 given[k].toTensor().dim() == 0);
    mapped(given[k], [&](const at::Tensor& tensor) { return call.notice(tensor, free, copies), tensor; });
  }
  for (auto& value : given)
    if (value.isDevice()) {
      const auto device = value.toDevice();
      if (device.type() == GPU) call.device = c10::Device(GPU, device.has_index() ? device.index() : current);
      value = c10::Device(c10::DeviceType::CPU);
    } else if (value.isGenerator()) {
      TORCH_CHECK(value.toGenerator().device().type() == GPU, name, ": the generator is on the CPU");
    }
  TORCH_CHECK(call.stranger.empty() || !call.device, name, ": tensors on ", *call.device, ", and ", call.stranger);
  if (indexes && given[0].toTensor().device().type() != GPU)
    TORCH_CHECK(false, name, ": indices on the device, what is indexed on the CPU");
  if (!call.device) call.device = c10::Device(GPU, current);

  std::vector<c10::IValue> stack;
  for (const auto& value : given)
    stack.push_back(mapped(value, [&](const at::Tensor& tensor) { return call.lowered(tensor); }));
  op.callBoxed(&stack);
  call.resize();
  for (const auto& value : stack)
    made.push_back(mapped(value, [&](const at::Tensor& tensor) { return call.raised(tensor); }));
}

bool on_both_sides(const std::vector<c10::IValue>& given) {
  bool host = false;
  for (const auto& value : given)
    mapped(value, [&](const at::Tensor& tensor) {
      host |= tensor.defined() && tensor.device().type() != GPU && tensor.dim() > 0;
      return tensor;
    });
  return host;
}

// --- copies to the host that nobody waited for yet: what they bring is not there before `arrive`

std::vector<std::pair<at::Tensor, at::Tensor>> late;

bool is_late(const c10::OperatorHandle& op, const std::vector<c10::IValue>& given) {
  return op.schema().name() == "aten::copy_" && given[2].toBool() && given[0].toTensor().device().type() != GPU;
}

void arrive() {
  for (auto& [to, from] : late) to.copy_(from);
  late.clear();
}

void any(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto n = op.schema().arguments().size();
  const auto start = stack->end() - static_cast<std::ptrdiff_t>(n);
  std::vector<c10::IValue> given(start, stack->end()), made;
  stack->erase(start, stack->end());
  const auto kept = given;
  if (capturing)
    TORCH_CHECK(!WAITS.count(op.schema().name()) && !on_both_sides(given), op.schema().name(),
                ": not permitted while a graph is captured");
  if (is_late(op, given)) {
    late.emplace_back(given[0].toTensor(), on_host(given[1].toTensor()).clone());
    made.push_back(given[0]);
  } else {
    run(op, given, made);
  }
  if (capturing) graphs.back().push_back({op, kept, made});
  stack->insert(stack->end(), made.begin(), made.end());
}

int64_t begin() {
  TORCH_CHECK(!capturing, "a graph is being captured already");
  capturing = true;
  graphs.emplace_back();
  return static_cast<int64_t>(graphs.size()) - 1;
}

void end() { capturing = false; }

void replay(int64_t number) {
  at::AutoDispatchBelowADInplaceOrView below;
  for (const auto& [op, given, made] : graphs.at(number)) {
    std::vector<c10::IValue> again = given, anew;
    run(op, again, anew);
    for (size_t k = 0; k < made.size(); k++) {
      if (!made[k].isTensor() || !made[k].toTensor().defined()) continue;
      const auto &to = made[k].toTensor(), &from = anew[k].toTensor();
      if (to.storage().data() != from.storage().data()) on_host(to).copy_(on_host(from));
    }
  }
}

void forget(int64_t number) {
  if (number >= 0) graphs.at(number).clear();
}

int64_t exchange(int64_t index) {
  const auto before = current;
  if (index >= 0) current = static_cast<c10::DeviceIndex>(index);
  return before;
}

// --- what makes tensors

at::Tensor empty(
    at::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
      dtype.value_or(at::get_default_dtype_as_scalartype()), format);
}

at::Tensor empty_strided(
    at::SymIntArrayRef size, at::SymIntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
      c10::DispatchKeySet(c10::DispatchKey::CUDA), dtype.value_or(at::get_default_dtype_as_scalartype()));
}

at::Tensor& set_part(
    at::Tensor& self, c10::Storage source, c10::SymInt offset, at::SymIntArrayRef size, at::SymIntArrayRef stride) {
  auto* own = self.unsafeGetTensorImpl();
  own->set_storage_keep_dtype(std::move(source));
  own->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

at::Tensor& set_all(at::Tensor& self, c10::Storage source) {
  const c10::SymInt size = source.nbytes() / self.itemsize(), one = 1;
  return set_part(self, std::move(source), 0, {size}, {one});
}

}  // namespace

static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
const auto* hooks = new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks;

C10_REGISTER_GUARD_IMPL(CUDA, Guard)
REGISTER_ALLOCATOR(GPU, &memory)

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&any>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("set_.source_Storage", TORCH_FN(set_all));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_part));
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&any>());
}

TORCH_LIBRARY(fake_gpu, m) {
  m.def("begin() -> int", begin);
  m.def("end() -> ()", end);
  m.def("replay(int number) -> ()", replay);
  m.def("forget(int number) -> ()", forget);
  m.def("arrive() -> ()", arrive);
  m.def("exchange(int index) -> int", exchange);
  m.def("current() -> int", [] { return static_cast<int64_t>(current); });
  m.def("most_held(int index) -> int", [](int64_t index) { return most.at(index).load(); });
  m.def("forget_most() -> ()", [] {
    for (size_t k = 0; k < most.size(); k++) most[k] = held[k].load();
  });
}
