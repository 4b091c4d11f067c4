# SPDX-License-Identifier: Apache-2.0
pp_unit_test(loop http SOURCES ${CMAKE_CURRENT_LIST_DIR}/loop_http_test.c
  DEPS pp_loop PkgConfig::OPENSSL)
pp_unit_test(loop job SOURCES ${CMAKE_CURRENT_LIST_DIR}/loop_job_test.c DEPS pp_loop)
pp_unit_test(loop rest SOURCES ${CMAKE_CURRENT_LIST_DIR}/loop_rest_test.c
  DEPS pp_loop PkgConfig::OPENSSL m)
pp_fuzz_target(loop http DEPS pp_loop
  PARSER "lib/loop/http.c:on_(body|header)|collect_headers|exchange_(verdict|collect)|http_response.*"
  "lib/loop/rest.c:rest_retry_after_ms")
