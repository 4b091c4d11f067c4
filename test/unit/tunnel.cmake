# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire tls SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_tls_test.c DEPS pp_wire)
pp_unit_test(wire tunnel_frame SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_tunnel_frame_test.c
  DEPS pp_wire)
foreach(name engine hello hostile pump)
  pp_unit_test(tunnel ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_${name}_test.c
    DEPS pp_tunnel)
endforeach()
if(BUILD_TESTING)
  find_package(Python3 COMPONENTS Interpreter)
  foreach(name frame hello)
    set(text ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/tunnel_${name}/seeds.hex)
    set(seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/tunnel_${name})
    set(unhex ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py)
    add_custom_command(OUTPUT ${seeds}.stamp
      COMMAND ${Python3_EXECUTABLE} ${unhex} ${seeds} ${text}
      COMMAND ${CMAKE_COMMAND} -E touch ${seeds}.stamp
      DEPENDS ${unhex} ${text} VERBATIM)
    add_custom_target(tunnel_${name}_seeds DEPENDS ${seeds}.stamp)
    pp_fuzz_target(tunnel ${name} SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/tunnel_${name}_fuzz.c
      DEPS pp_wire CORPUS ${seeds})
    add_dependencies(fuzz_tunnel_${name} tunnel_${name}_seeds)
  endforeach()
endif()
