# SPDX-License-Identifier: Apache-2.0
pp_unit_test(base base64 SOURCES ${CMAKE_CURRENT_LIST_DIR}/base_base64_test.c DEPS pp_base)
foreach(name apf initdata toml userdata)
  pp_unit_test(guest ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/guest_${name}_test.c DEPS pp_guest)
endforeach()
pp_pytest(forwarder process_user_data FILE chain/test_process_user_data.py TIMEOUT 120)
foreach(name apf cloudconfig initdata toml)
  pp_fuzz_target(guest ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/../fuzz/guest_${name}_fuzz.c
    DEPS pp_guest CORPUS ${CMAKE_CURRENT_LIST_DIR}/../fuzz/corpus/guest_${name})
endforeach()
