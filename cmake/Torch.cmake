# LibTorch is PyPI's wheel torch==2.11.0 used from C++ (scripts/setup.sh installs it in .venv).
# The wheel's own CMake package insists on a CUDA toolkit, hence these two imported targets.
set(BABAI_TORCH_DIR "" CACHE PATH "Folder of an installed torch 2.11 wheel (the one holding lib/ and include/)")
if(NOT BABAI_TORCH_DIR)
  file(GLOB _torch ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(NOT _torch)
    message(FATAL_ERROR "LibTorch not found: run scripts/setup.sh, or set BABAI_TORCH_DIR to an installed torch 2.11 wheel")
  endif()
  list(GET _torch 0 BABAI_TORCH_DIR)
endif()
cmake_path(GET BABAI_TORCH_DIR PARENT_PATH _site)

foreach(name torch_cpu c10)
  add_library(torch::${name} SHARED IMPORTED)
  set_target_properties(torch::${name} PROPERTIES
    IMPORTED_LOCATION ${BABAI_TORCH_DIR}/lib/lib${name}.so
    INTERFACE_INCLUDE_DIRECTORIES "${BABAI_TORCH_DIR}/include;${BABAI_TORCH_DIR}/include/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${BABAI_TORCH_DIR}/include")
endforeach()

add_library(babai_torch INTERFACE)
add_library(babai::torch ALIAS babai_torch)
target_link_libraries(babai_torch INTERFACE torch::torch_cpu torch::c10)
# libtorch_cpu links cudart and cupti, which sit in wheels of their own beside it.
file(GLOB _cuda_libs ${_site}/nvidia/cu13/lib ${_site}/nvidia/cuda_runtime/lib ${_site}/nvidia/cuda_cupti/lib)
set(BABAI_TORCH_RPATH ${BABAI_TORCH_DIR}/lib ${_cuda_libs})
list(APPEND CMAKE_BUILD_RPATH ${BABAI_TORCH_RPATH})
foreach(dir ${BABAI_TORCH_RPATH})
  target_link_options(babai_torch INTERFACE "LINKER:-rpath-link,${dir}")
endforeach()
