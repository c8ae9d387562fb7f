# babai::warnings says how our own code is built; users of a target do not inherit it.
add_library(babai_warnings INTERFACE)
add_library(babai::warnings ALIAS babai_warnings)
target_compile_options(babai_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers>)
