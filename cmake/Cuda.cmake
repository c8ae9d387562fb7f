# The CUDA 13.0 compiler: an installed toolkit's (CMAKE_CUDA_COMPILER, CUDACXX or nvcc on the PATH), or
# the one of NVIDIA's PyPI wheels in .venv (scripts/setup.sh --cuda). Sets BABAI_HAS_CUDA and makes
# babai::cudart: headers and the static runtime, so that a binary starts on a machine without CUDA.
set(BABAI_HAS_CUDA FALSE)
if(BABAI_CUDA STREQUAL "OFF")
  return()
endif()

file(GLOB _wheels ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(BABAI_NVCC nvcc HINTS /usr/local/cuda/bin ${_wheels}/bin)
  if(BABAI_NVCC)
    set(CMAKE_CUDA_COMPILER ${BABAI_NVCC})
  endif()
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  if(BABAI_CUDA STREQUAL "ON")
    message(FATAL_ERROR "BABAI_CUDA=ON, but no nvcc: run scripts/setup.sh --cuda, or put a CUDA 13 toolkit's bin on the PATH")
  endif()
  message(STATUS "CUDA: no nvcc found, GPU kernels are left out (scripts/setup.sh --cuda installs one)")
  return()
endif()

# 80 also runs on 86 and 89 (same major version); 90a is Hopper's own, with wgmma.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real CACHE STRING "GPU architectures")
endif()
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH _bin)
cmake_path(GET _bin PARENT_PATH _root)
# The wheels keep the runtime in lib/, where nvcc looks in lib64/: this is for CMake's own trial links.
if(EXISTS ${_root}/lib/libcudart_static.a)
  set(ENV{LIBRARY_PATH} "${_root}/lib:$ENV{LIBRARY_PATH}")
endif()
enable_language(CUDA)
find_library(BABAI_CUDART_STATIC cudart_static HINTS ${_root}/lib ${_root}/lib64 ${_root}/targets/x86_64-linux/lib
             NO_DEFAULT_PATH REQUIRED)
find_path(BABAI_CUDA_INCLUDE cuda_runtime_api.h HINTS ${_root}/include ${_root}/targets/x86_64-linux/include
          NO_DEFAULT_PATH REQUIRED)
add_library(babai_cudart INTERFACE)
add_library(babai::cudart ALIAS babai_cudart)
target_include_directories(babai_cudart SYSTEM INTERFACE ${BABAI_CUDA_INCLUDE})
target_link_libraries(babai_cudart INTERFACE ${BABAI_CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
# Every target says what it links: nvcc must not add a runtime of its own choice.
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(BABAI_HAS_CUDA TRUE)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
