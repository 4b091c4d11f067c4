# SPDX-License-Identifier: Apache-2.0
# What every target of the project has in common: warnings, hardening, sanitizers, dependencies, and
# the three functions that the folders use.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# Assertions stay in every build but Release.
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g")

set(PP_SANITIZE "" CACHE STRING "empty, 'asan' (address, undefined, leak) or 'tsan'")
option(PP_COVERAGE "instrumentation for gcov (with clang: llvm-cov)" OFF)

# What is installed is optimised as a whole, and calls libraries without a detour: a byte on its way
# crosses a dozen small files and thousands of instructions of OpenSSL's.
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ON)
endif()

include(CheckCCompilerFlag)
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
foreach(dep libuv libcurl json-c openssl libprotobuf-c yaml-0.1 libmicrohttpd libxml-2.0)
  string(TOUPPER ${dep} var)
  string(REGEX REPLACE "[^A-Z0-9]" "_" var ${var})
  pkg_check_modules(${var} REQUIRED IMPORTED_TARGET ${dep})
endforeach()

add_library(pp_options INTERFACE)
target_compile_definitions(pp_options INTERFACE _GNU_SOURCE PP_VERSION="${PROJECT_VERSION}")
target_include_directories(pp_options INTERFACE ${CMAKE_SOURCE_DIR}/lib ${CMAKE_SOURCE_DIR})
target_compile_options(pp_options INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wconversion -Wstrict-prototypes -Wformat=2 -Wmissing-prototypes
  -Wundef -Wvla -fno-strict-aliasing -fno-common -fstack-protector-strong -g)
target_link_options(pp_options INTERFACE -Wl,-z,relro,-z,now -Wl,-z,noexecstack -pie)
# Where compiler and architecture have it; test hardening.binaries looks at the result.
foreach(flag -fstack-clash-protection -fcf-protection=full -mbranch-protection=standard)
  string(MAKE_C_IDENTIFIER "HAVE${flag}" have)
  check_c_compiler_flag("-Werror ${flag}" ${have})
  if(${have})
    target_compile_options(pp_options INTERFACE ${flag})
  endif()
endforeach()

if(PP_SANITIZE STREQUAL "asan")
  target_compile_options(pp_options INTERFACE -fsanitize=address,undefined
    -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(pp_options INTERFACE -fsanitize=address,undefined)
  if(CMAKE_C_COMPILER_ID STREQUAL "Clang")
    # The libraries too: libFuzzer is blind to code without it.
    target_compile_options(pp_options INTERFACE -fsanitize=fuzzer-no-link)
  endif()
elseif(PP_SANITIZE STREQUAL "tsan")
  target_compile_options(pp_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(pp_options INTERFACE -fsanitize=thread)
elseif(NOT PP_SANITIZE STREQUAL "")
  message(FATAL_ERROR "PP_SANITIZE is '${PP_SANITIZE}'; allowed: empty, asan, tsan")
elseif(NOT PP_COVERAGE) # it needs an optimising compiler
  target_compile_options(pp_options INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  target_compile_options(pp_options INTERFACE -fno-plt)
endif()
if(PP_COVERAGE AND CMAKE_C_COMPILER_ID STREQUAL "Clang")
  target_compile_options(pp_options INTERFACE -fprofile-instr-generate -fcoverage-mapping -O1)
  target_link_options(pp_options INTERFACE -fprofile-instr-generate)
elseif(PP_COVERAGE)
  target_compile_options(pp_options INTERFACE --coverage -O0)
  target_link_options(pp_options INTERFACE --coverage)
endif()
# Filled by pp_fuzz_target.
file(WRITE ${CMAKE_BINARY_DIR}/fuzz-targets "")
add_custom_target(fuzz_targets)

# pp_library(NAME SOURCES... DEPS...): a static library of one folder.
function(pp_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC pp_options ${arg_DEPS})
endfunction()

# pp_program(NAME SOURCES... DEPS...): an installed program, built into bin/.
function(pp_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(NOT PP_SANITIZE)
    # Apart from what is optimised as a whole: a compiler has its own idea of what free does.
    list(APPEND arg_SOURCES ${CMAKE_SOURCE_DIR}/lib/base/zero_free.c)
    set_source_files_properties(${CMAKE_SOURCE_DIR}/lib/base/zero_free.c PROPERTIES
      COMPILE_OPTIONS "-fno-lto;-fno-builtin")
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE pp_options ${arg_DEPS})
  install(TARGETS ${name} RUNTIME)
endfunction()

# pp_unit_test(MODULE NAME SOURCES... DEPS... [TIMEOUT s] [ARGS...]): ctest name MODULE.NAME, a
# cmocka program.
function(pp_unit_test module name)
  if(NOT BUILD_TESTING)
    return()
  endif()
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;ARGS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  set(target test_${module}_${name})
  add_executable(${target} ${arg_SOURCES})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/test)
  # A test never links the project's stricter main rules: cmocka needs unused parameters.
  # On the sources, so that it comes behind -Wextra: clang goes by the last word.
  set_source_files_properties(${arg_SOURCES} PROPERTIES COMPILE_OPTIONS -Wno-unused-parameter)
  target_link_libraries(${target} PRIVATE pp_options ${arg_DEPS} cmocka)
  add_test(NAME ${module}.${name} COMMAND ${target} ${arg_ARGS})
  set_tests_properties(${module}.${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77)
endfunction()

# pp_pytest(MODULE NAME FILE file.py [ISOLATED] [TIMEOUT s] [LABELS...] [ARGS...]): ctest name
# MODULE.NAME, a pytest file run by build/venv's Python; the programs' folder is in PEERPOD_BIN. See
# test/pytest_run.py for what a skip means, and for ISOLATED (namespaces of its own).
function(pp_pytest module name)
  if(NOT BUILD_TESTING)
    return()
  endif()
  cmake_parse_arguments(arg "ISOLATED" "FILE;TIMEOUT" "LABELS;ARGS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  set(isolated "")
  if(arg_ISOLATED)
    set(isolated --isolated)
  endif()
  add_test(NAME ${module}.${name}
    COMMAND ${CMAKE_SOURCE_DIR}/test/pytest_run.py ${isolated}
            ${CMAKE_CURRENT_SOURCE_DIR}/${arg_FILE} ${arg_ARGS})
  set_tests_properties(${module}.${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77
    LABELS "${arg_LABELS}" ENVIRONMENT
    "PEERPOD_BIN=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};PEERPOD_SOURCE=${CMAKE_SOURCE_DIR}")
endfunction()

# pp_fuzz_target(MODULE NAME [SOURCES...] DEPS... PARSER...): test/fuzz/MODULE_NAME_fuzz.c and more
# SOURCES as a libFuzzer target under clang; in every build a program that runs the entry point over
# its seeds, made of test/fuzz/corpus/MODULE_NAME, as test MODULE.fuzz_NAME. PARSER: what it is to
# reach, see scripts/fuzz-coverage.
function(pp_fuzz_target module name)
  if(NOT BUILD_TESTING)
    return()
  endif()
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PARSER" ${ARGN})
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set(fuzz ${CMAKE_SOURCE_DIR}/test/fuzz)
  set(target fuzz_${module}_${name})
  set(seeds ${CMAKE_BINARY_DIR}/fuzz-seeds/${module}_${name})
  file(GLOB corpus CONFIGURE_DEPENDS ${fuzz}/corpus/${module}_${name}/*)
  add_custom_command(OUTPUT ${seeds}.stamp
    COMMAND ${Python3_EXECUTABLE} ${fuzz}/seeds.py ${seeds} ${corpus}
    COMMAND ${CMAKE_COMMAND} -E touch ${seeds}.stamp
    DEPENDS ${fuzz}/seeds.py ${corpus} VERBATIM)
  add_custom_target(${target}_seeds DEPENDS ${seeds}.stamp)
  add_test(NAME ${module}.fuzz_${name} COMMAND ${target} ${seeds})
  set_tests_properties(${module}.fuzz_${name} PROPERTIES TIMEOUT 120)
  list(JOIN arg_PARSER " " arg_PARSER)
  file(APPEND ${CMAKE_BINARY_DIR}/fuzz-targets "${module}_${name} ${arg_PARSER}\n")
  set(programs ${target})
  add_executable(${target} ${fuzz}/${module}_${name}_fuzz.c ${arg_SOURCES} ${fuzz}/driver.c)
  if(CMAKE_C_COMPILER_ID STREQUAL "Clang" AND PP_SANITIZE STREQUAL "asan")
    add_executable(${target}_long ${fuzz}/${module}_${name}_fuzz.c ${arg_SOURCES})
    target_compile_options(${target}_long PRIVATE -fsanitize=fuzzer)
    target_link_options(${target}_long PRIVATE -fsanitize=fuzzer)
    list(APPEND programs ${target}_long)
  endif()
  foreach(program ${programs})
    target_include_directories(${program} PRIVATE ${CMAKE_SOURCE_DIR}/test)
    target_compile_options(${program} PRIVATE -Wno-missing-prototypes)
    target_link_libraries(${program} PRIVATE pp_options ${arg_DEPS})
    add_dependencies(${program} ${target}_seeds)
    add_dependencies(fuzz_targets ${program})
  endforeach()
endfunction()

# pp_proto(OUT_SOURCES proto...): C sources from .proto files, into the build tree.
function(pp_proto out)
  find_program(PROTOC_C protoc-c REQUIRED)
  set(dir ${CMAKE_CURRENT_BINARY_DIR}/proto)
  file(MAKE_DIRECTORY ${dir})
  set(sources "")
  foreach(proto ${ARGN})
    get_filename_component(base ${proto} NAME_WE)
    add_custom_command(OUTPUT ${dir}/${base}.pb-c.c ${dir}/${base}.pb-c.h
      COMMAND ${PROTOC_C} --c_out=${dir} -I ${CMAKE_CURRENT_SOURCE_DIR}/proto
              ${CMAKE_CURRENT_SOURCE_DIR}/proto/${base}.proto
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/proto/${base}.proto VERBATIM)
    list(APPEND sources ${dir}/${base}.pb-c.c)
  endforeach()
  set(${out} ${sources} PARENT_SCOPE)
  set(PP_PROTO_DIR ${dir} PARENT_SCOPE)
endfunction()
