#include "kernels/cuda/cholesky.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace babai::cuda {
namespace {

// Of the C interface (cuSOLVER 12 library reference), whose header does not come with the
// compiler's wheels.
using Handle = void*;
constexpr int kLower = 0;  // cublasFillMode_t

struct Library {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*set_stream)(Handle, cudaStream_t);
  int (*workspace)(Handle, int, int, double*, int, int*);
  int (*factor)(Handle, int, int, double*, int, double*, int, int*);
};

template <typename Fn>
bool Find(void* library, const char* name, Fn* fn) {
  *fn = reinterpret_cast<Fn>(dlsym(library, name));
  return *fn != nullptr;
}

// Opened once and never closed: it keeps state in the driver.
absl::StatusOr<Library> Open() {
  constexpr char kName[] = "libcusolver.so.12";
  void* const opened = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) {
    const char* why = dlerror();
    return absl::FailedPreconditionError(
        absl::StrCat(kName, " is needed to quantize on the GPU: ", why != nullptr ? why : ""));
  }
  Library library;
  if (Find(opened, "cusolverDnCreate", &library.create) &&
      Find(opened, "cusolverDnDestroy", &library.destroy) &&
      Find(opened, "cusolverDnSetStream", &library.set_stream) &&
      Find(opened, "cusolverDnDpotrf_bufferSize", &library.workspace) &&
      Find(opened, "cusolverDnDpotrf", &library.factor)) {
    return library;
  }
  return absl::FailedPreconditionError(absl::StrCat(kName, " lacks a function of cuSOLVER 12"));
}

class CusolverCholesky final : public Cholesky {
 public:
  CusolverCholesky(const Library& library, Handle handle) : library_(library), handle_(handle) {}
  ~CusolverCholesky() override { library_.destroy(handle_); }

  absl::Status Bind(const Stream& stream) {
    return Check(library_.set_stream(handle_, stream.get()), "cusolverDnSetStream");
  }

  absl::StatusOr<int64_t> WorkspaceValues(int k) override {
    int values = 0;
    const absl::Status got = Check(library_.workspace(handle_, kLower, k, nullptr, k, &values),
                                   "cusolverDnDpotrf_bufferSize");
    if (!got.ok()) return got;
    return values;
  }

  // Their lower triangle of a column-major matrix is our upper one.
  absl::Status Run(double* a, int k, double* workspace, int64_t values, int* info) override {
    return Check(
        library_.factor(handle_, kLower, k, a, k, workspace, static_cast<int>(values), info),
        "cusolverDnDpotrf");
  }

 private:
  static absl::Status Check(int error, const char* call) {
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(call, ": status ", error));
  }

  const Library library_;
  const Handle handle_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Cholesky>> Cholesky::Make(const Stream& stream) {
  static const absl::StatusOr<Library> library = Open();
  if (!library.ok()) return library.status();
  Handle handle = nullptr;
  if (const int error = library->create(&handle); error != 0) {
    return absl::InternalError(absl::StrCat("cusolverDnCreate: status ", error));
  }
  auto cholesky = std::make_unique<CusolverCholesky>(*library, handle);
  if (absl::Status bound = cholesky->Bind(stream); !bound.ok()) return bound;
  return std::unique_ptr<Cholesky>(std::move(cholesky));
}

}  // namespace babai::cuda
