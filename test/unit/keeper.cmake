# SPDX-License-Identifier: Apache-2.0
# Preloaded into every keeper of the plain builds (a sanitizer has a heap of its own).
if(BUILD_TESTING AND NOT PP_SANITIZE)
  add_library(keeper_heap MODULE ${CMAKE_CURRENT_LIST_DIR}/keeper_heap.c)
  # It defines what the checked calls' headers define.
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/keeper_heap.c
    PROPERTIES COMPILE_OPTIONS -U_FORTIFY_SOURCE)
  target_link_libraries(keeper_heap PRIVATE pp_options)
  set(keeper_preload $<TARGET_FILE:keeper_heap>)
endif()
foreach(name keeper handover)
  pp_unit_test(keeper ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_${name}_test.c DEPS pp_relay
    ARGS $<TARGET_FILE:peerpod-keeper> ${keeper_preload} TIMEOUT 60)
  add_dependencies(test_keeper_${name} peerpod-keeper)
  if(keeper_preload)
    add_dependencies(test_keeper_${name} keeper_heap)
  endif()
endforeach()
# A tracer sees a sanitizer's own system calls as steps; the plain build has the real ones.
if(BUILD_TESTING AND NOT PP_SANITIZE)
  pp_unit_test(keeper kills SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_kills_test.c
    DEPS pp_relay Threads::Threads ARGS $<TARGET_FILE:peerpod-keeper> TIMEOUT 120)
  add_dependencies(test_keeper_kills peerpod-keeper)
endif()
pp_fuzz_target(keeper peer DEPS pp_keeper
  PARSER "keeper/handover.c:(?!handover_meet|handover_child_died|handover_relay|settle|start_over).*"
    "lib/relay/fdtable.c:(fdtable_exchange|fdtable_apply|add|read_name)")
