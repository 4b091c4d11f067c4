# SPDX-License-Identifier: Apache-2.0
pp_unit_test(base base64 SOURCES ${CMAKE_CURRENT_LIST_DIR}/base_base64_test.c DEPS pp_base)
foreach(name initdata toml userdata)
  pp_unit_test(guest ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/guest_${name}_test.c DEPS pp_guest)
endforeach()
pp_pytest(forwarder process_user_data FILE chain/test_process_user_data.py TIMEOUT 120)
