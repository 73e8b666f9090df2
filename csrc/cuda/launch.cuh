// How an operator starts its kernels: on the device and in the stream of its tensors. Nothing here waits for the GPU,
// and memory is PyTorch's, so that a CUDA graph can capture it.
#pragma once
#include <torch/csrc/stable/library.h>

#include "check.h"
#include "cuda/ptx.cuh"

#ifdef __CUDACC__
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define STAIR_GPU CUDA
#else
#define STAIR_GPU CPU  // the kernels run on CPU tensors, in place of the CPU's own
#endif

namespace stair {

#ifdef __CUDACC__

inline void check_cuda(cudaError_t status, const char* what) {
  STAIR_CHECK(status == cudaSuccess, "stair_kernels: ", what, ": ", cudaGetErrorString(status));
}

// Bytes of shared memory that a launch may ask for without leave: with a kernel's own variables below 48 KiB.
constexpr int64_t kGranted = 40 << 10;

// The device of a tensor: the current one while this lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : device_(t.get_device_index()), guard_(device_) {}

  int multiprocessors() const {
    int count = 0;
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_), "cudaDeviceGetAttribute");
    return count;
  }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes, A... arguments) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream();
    if (shared_bytes > kGranted) {
      const auto* function = reinterpret_cast<const void*>(kernel);
      check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
                 "shared memory");
      check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared),
                 "shared memory, not L1");
    }
    check_cuda(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launch");
  }

 private:
  // The stable headers have no way from a device to its stream before torch 2.13. libtorch_cuda has; it is in the
  // process wherever there is a CUDA tensor, and to look the function up spares linking it, and CPU-only torch with it.
  cudaStream_t stream() const {
    using Get = AOTITorchError (*)(int32_t, void**);
    static const auto get = reinterpret_cast<Get>([] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    }());
    STAIR_CHECK(get, "stair_kernels: torch's libtorch_cuda.so has no aoti_torch_get_current_cuda_stream");
    void* stream = nullptr;
    STAIR_CHECK(get(device_, &stream) == AOTI_TORCH_SUCCESS, "stair_kernels: no current stream on cuda:", device_);
    return static_cast<cudaStream_t>(stream);
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

#else

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}

  int multiprocessors() const { return 16; }  // few, so that small batches take the path of large ones

  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes, A... arguments) const {
    simt::launch(grid, dim3(threads), size_t(shared_bytes), [&] { kernel(P(arguments)...); });
  }
};

#endif

}  // namespace stair
