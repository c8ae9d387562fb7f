#include "kernels/cuda/cublas.h"

#include <dlfcn.h>

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"

namespace babai::cuda {
namespace {

// The five calls and the constants of the C interface that we use (cuBLAS 13 library reference);
// its header does not come with the compiler's wheels.
using Handle = void*;
constexpr int kReal16F = 2, kReal16Bf = 14, kReal32F = 0;  // cudaDataType
constexpr int kCompute32F = 68, kComputeTf32 = 77;         // cublasComputeType_t
constexpr int kDefaultAlgorithm = -1;                      // cublasGemmAlgo_t

int TypeOf(Element element) {
  switch (element) {
    case Element::kFp16:
      return kReal16F;
    case Element::kBf16:
      return kReal16Bf;
    default:
      return kReal32F;
  }
}

struct Library {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*set_stream)(Handle, cudaStream_t);
  int (*set_workspace)(Handle, void*, size_t);
  int (*gemm)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int,
              int, const void*, void*, int, int, int, int);
};

template <typename Fn>
bool Find(void* library, const char* name, Fn* fn) {
  *fn = reinterpret_cast<Fn>(dlsym(library, name));
  return *fn != nullptr;
}

// Opened once and never closed: it keeps state in the driver.
absl::StatusOr<Library> Open() {
  constexpr char kName[] = "libcublas.so.13";
  void* const opened = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        kName, " is needed for dense products and is not on the library path (LD_LIBRARY_PATH)"));
  }
  Library library;
  if (Find(opened, "cublasCreate_v2", &library.create) &&
      Find(opened, "cublasDestroy_v2", &library.destroy) &&
      Find(opened, "cublasSetStream_v2", &library.set_stream) &&
      Find(opened, "cublasSetWorkspace_v2", &library.set_workspace) &&
      Find(opened, "cublasGemmEx", &library.gemm)) {
    return library;
  }
  return absl::FailedPreconditionError(absl::StrCat(kName, " lacks a function of cuBLAS 13"));
}

class OpenedCublas final : public Cublas {
 public:
  OpenedCublas(const Library& library, Handle handle, Buffer workspace)
      : library_(library), handle_(handle), workspace_(std::move(workspace)) {}
  ~OpenedCublas() override { library_.destroy(handle_); }

  absl::Status Gemm(const GemmCall& c) override {
    const float one = 1;
    const int input = TypeOf(c.input);
    const int error = library_.gemm(handle_, c.transpose_a, c.transpose_b, c.m, c.n, c.k, &one, c.a,
                                    input, c.lda, c.b, input, c.ldb, &c.beta, c.c, TypeOf(c.output),
                                    c.ldc, c.tf32 ? kComputeTf32 : kCompute32F, kDefaultAlgorithm);
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("cublasGemmEx: status ", error));
  }

  absl::Status Bind(const Stream& stream) {
    if (library_.set_stream(handle_, stream.get()) == 0 &&
        library_.set_workspace(handle_, workspace_.data(), workspace_.bytes()) == 0) {
      return absl::OkStatus();
    }
    return absl::InternalError("cuBLAS refused the stream or its workspace");
  }

 private:
  const Library library_;
  const Handle handle_;
  const Buffer workspace_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Make(const Stream& stream) {
  static const absl::StatusOr<Library> library = Open();
  if (!library.ok()) return library.status();
  absl::StatusOr<Buffer> workspace = Buffer::OnDevice(kWorkspaceBytes);
  if (!workspace.ok()) return workspace.status();
  Handle handle = nullptr;
  if (const int error = library->create(&handle); error != 0) {
    return absl::InternalError(absl::StrCat("cublasCreate: status ", error));
  }
  auto cublas = std::make_unique<OpenedCublas>(*library, handle, *std::move(workspace));
  if (absl::Status bound = cublas->Bind(stream); !bound.ok()) return bound;
  return std::unique_ptr<Cublas>(std::move(cublas));
}

}  // namespace babai::cuda
