// A CUDA backend that computes on the CPU, for tests on machines without a GPU.
//
// Tensors on "cuda:0" and "cuda:1" own ordinary memory. Every operation without a kernel of its own runs the CPU's on
// aliases of its arguments, after the checks that CUDA makes: all tensors on one device (CPU scalars and CPU indices
// excepted), no CPU generator, and in deterministic mode no operation that CUDA has no deterministic kernel for.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <set>
#include <string>

namespace at {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr DeviceIndex kDevices = 2;
thread_local DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override {
    Device before(DeviceType::CUDA, current);
    uncheckedSetDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    *event = reinterpret_cast<void*>(1);
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// The CPU's generator under another device; see `fallback`.
struct DeviceGenerator : CPUGeneratorImpl {
  explicit DeviceGenerator(DeviceIndex index) { device_ = Device(DeviceType::CUDA, index); }
};

struct CUDAHooks : CUDAHooksInterface {  // found by this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex deviceCount() const override { return kDevices; }
  DeviceIndex getCurrentDevice() const override { return current; }
  Generator getNewGenerator(DeviceIndex index) const override { return make_generator<DeviceGenerator>(index); }
};

}  // namespace

REGISTER_CUDA_HOOKS(CUDAHooks)

namespace {

// A storage on another device over the same memory, which keeps the first one alive.
Storage alias(const Storage& storage, Device device) {
  auto* owner = new Storage(storage);
  DataPtr memory(storage.mutable_data(), owner, [](void* each) { delete static_cast<Storage*>(each); }, device);
  return Storage(c10::make_intrusive<StorageImpl>(
      StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(memory), c10::GetDefaultCPUAllocator(), true));
}

Tensor tensor_over(Storage storage, const Tensor& like, c10::DispatchKey key) {
  auto impl = c10::make_intrusive<TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  Tensor made(std::move(impl));
  if (like.is_neg()) made._set_neg(true);
  if (like.is_conj()) made._set_conj(true);
  return made;
}

bool on_device(const Tensor& each) { return each.defined() && each.device().type() == DeviceType::CUDA; }

Tensor on_cpu(const Tensor& each) {
  if (!on_device(each)) return each;
  return tensor_over(alias(each.storage(), Device(DeviceType::CPU)), each, c10::DispatchKey::CPU);
}

const std::set<std::string> kIndexing = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};
// torch.use_deterministic_algorithms documents which operations raise on CUDA.
const std::set<std::string> kNondeterministic = {
    "aten::avg_pool3d_backward", "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward",
    "aten::max_pool3d_with_indices_backward", "aten::adaptive_max_pool2d_backward",
    "aten::adaptive_max_pool3d_backward", "aten::fractional_max_pool2d_backward", "aten::max_unpool2d",
    "aten::upsample_linear1d_backward", "aten::upsample_bilinear2d_backward", "aten::upsample_bicubic2d_backward",
    "aten::upsample_trilinear3d_backward", "aten::reflection_pad1d_backward", "aten::reflection_pad2d_backward",
    "aten::reflection_pad3d_backward", "aten::nll_loss2d_forward", "aten::_ctc_loss_backward", "aten::put_",
    "aten::histc", "aten::bincount", "aten::kthvalue", "aten::median", "aten::grid_sampler_2d_backward",
    "aten::grid_sampler_3d_backward", "aten::cumsum", "aten::cumsum_", "aten::max_pool2d_with_indices_backward"};

void check(const c10::FunctionSchema& schema, const std::string& full, const std::vector<Tensor>& tensors) {
  std::optional<Device> first;
  for (const auto& each : tensors) {
    if (!on_device(each)) continue;
    TORCH_CHECK(!first || *first == each.device(), "Expected all tensors to be on the same device, but found ",
                *first, " and ", each.device(), "! (", full, ")");
    first = each.device();
  }
  for (const auto& each : tensors) {
    if (!first || !each.defined() || on_device(each) || each.dim() == 0) continue;
    const bool index = kIndexing.count(schema.name()) && !tensors[0].is_same(each) && on_device(tensors[0]);
    TORCH_CHECK(index, "Expected all tensors to be on the same device, but found at least two devices, ", *first,
                " and cpu! (", full, ")");
  }
  const bool integral = !tensors.empty() && !tensors[0].is_floating_point();
  const bool counts = full.rfind("aten::cumsum", 0) == 0 || full.rfind("aten::bincount", 0) == 0;
  if (globalContext().deterministicAlgorithms() && kNondeterministic.count(schema.name()) && !(counts && integral)) {
    globalContext().alertNotDeterministic(schema.name());
  }
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  std::vector<Tensor> given, aliases;
  std::optional<Device> device;
  auto convert = [&](const Tensor& each) {
    given.push_back(each);
    aliases.push_back(on_cpu(each));
    if (on_device(each) && !device) device = each.device();
    return aliases.back();
  };
  std::optional<Device> asked;
  bool cpu_generator = false;
  std::optional<Generator> generator, substitute;
  for (size_t i = 0; i < count; ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = convert(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const auto& each : value.toTensorVector()) list.push_back(convert(each));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& each : value.toOptionalTensorList()) {
        list.push_back(each ? std::optional<Tensor>(convert(*each)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice()) {
      asked = value.toDevice();
      if (asked->type() == DeviceType::CUDA) value = Device(DeviceType::CPU);
    } else if (value.isGenerator()) {
      generator = value.toGenerator();
      cpu_generator = generator->device().type() == DeviceType::CPU;
      if (!cpu_generator) {
        substitute = make_generator<CPUGeneratorImpl>();
        check_generator<CPUGeneratorImpl>(substitute)->set_engine(
            static_cast<CPUGeneratorImpl*>(generator->unsafeGetGeneratorImpl())->engine());
        value = *substitute;
      }
    }
  }
  const std::string full = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  check(schema, full, given);
  if (asked && asked->type() == DeviceType::CUDA) device = *asked;
  const Device target = device.value_or(Device(DeviceType::CUDA, current));
  TORCH_CHECK(!cpu_generator, "Expected a 'cuda' device type for generator but found 'cpu' (", full, ")");
  op.callBoxed(stack);
  if (substitute) {
    static_cast<CPUGeneratorImpl*>(generator->unsafeGetGeneratorImpl())
        ->set_engine(check_generator<CPUGeneratorImpl>(substitute)->engine());
  }
  auto restore = [&](const Tensor& result) -> Tensor {
    if (!result.defined() || result.device().type() != DeviceType::CPU) return result;
    if (asked && asked->type() == DeviceType::CPU) return result;
    for (size_t i = 0; i < given.size(); ++i) {
      if (!on_device(given[i])) continue;
      if (result.is_same(aliases[i])) {  // an argument that was written to, and perhaps resized
        if (result.storage().data() != given[i].storage().data()) {
          given[i].unsafeGetTensorImpl()->set_storage_keep_dtype(alias(result.storage(), target));
        }
        if (result.sizes() != given[i].sizes() || result.strides() != given[i].strides()) {
          given[i].unsafeGetTensorImpl()->set_sizes_and_strides(
              result.sizes(), result.strides(), result.storage_offset());
        }
        return given[i];
      }
      if (aliases[i].has_storage() && result.storage().is_alias_of(aliases[i].storage())) {  // a view
        return tensor_over(given[i].storage(), result, c10::DispatchKey::CUDA);
      }
    }
    return tensor_over(alias(result.storage(), target), result, c10::DispatchKey::CUDA);
  };
  const auto returns = schema.returns().size();
  for (size_t i = stack->size() - returns; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = restore(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const auto& each : value.toTensorVector()) list.push_back(restore(each));
      value = list;
    }
  }
}

Tensor empty(c10::SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<MemoryFormat> format) {
  Tensor made = at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(size), dtype, std::nullopt, Device(DeviceType::CPU),
                                    false, format);
  Device target = device.value_or(Device(DeviceType::CUDA, current));
  if (!target.has_index()) target = Device(DeviceType::CUDA, current);
  return tensor_over(alias(made.storage(), target), made, c10::DispatchKey::CUDA);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<ScalarType> dtype,
                     std::optional<Layout>, std::optional<Device> device, std::optional<bool>) {
  Tensor made = at::detail::empty_strided_cpu(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), dtype,
                                            std::nullopt, Device(DeviceType::CPU), false);
  Device target = device.value_or(Device(DeviceType::CUDA, current));
  if (!target.has_index()) target = Device(DeviceType::CUDA, current);
  return tensor_over(alias(made.storage(), target), made, c10::DispatchKey::CUDA);
}

Tensor& copy_(Tensor& self, const Tensor& from, bool) {
  on_cpu(self).copy_(on_cpu(from));
  return self;
}

Tensor& set_part(Tensor& self, Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                 c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const auto strides = stride.empty() ? std::vector<int64_t>(sizes.size(), 1) : C10_AS_INTARRAYREF_SLOW(stride).vec();
  impl->set_sizes_and_strides(sizes, strides, offset.expect_int());
  return self;
}

Tensor& set_whole(Tensor& self, Storage source) {
  const int64_t count = source.nbytes() / self.itemsize();
  return set_part(self, std::move(source), 0, {c10::SymInt(count)}, {c10::SymInt(1)});
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  for (const char* whole : {"convolution", "convolution_backward"}) {  // else torch would look for CUDA's own kernels
    m.impl(whole, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_part);
}

}  // namespace
}  // namespace at

extern "C" int pretended_get_device() { return at::current; }
extern "C" void pretended_set_device(int index) { at::current = static_cast<c10::DeviceIndex>(index); }
