# SPDX-License-Identifier: Apache-2.0
pp_unit_test(adaptor metrics SOURCES unit/adaptor_metrics_test.c DEPS pp_adaptor pp_providers)
pp_unit_test(adaptor podnet SOURCES unit/adaptor_podnet_test.c DEPS pp_adaptor)
pp_unit_test(adaptor podspec SOURCES unit/adaptor_podspec_test.c
  ${CMAKE_SOURCE_DIR}/adaptor/podspec.c DEPS pp_wire pp_base m)
pp_unit_test(adaptor record SOURCES unit/adaptor_record_test.c
  ${CMAKE_SOURCE_DIR}/adaptor/record.c DEPS pp_wire pp_base)
pp_fuzz_target(adaptor podspec SOURCES ${CMAKE_SOURCE_DIR}/adaptor/podspec.c DEPS pp_wire pp_base m
  PARSER adaptor/podspec.c)
pp_fuzz_target(adaptor volumes SOURCES ${CMAKE_SOURCE_DIR}/adaptor/volumes.c DEPS pp_wire pp_base
  PARSER adaptor/volumes.c)
pp_fuzz_target(base options SOURCES ${CMAKE_SOURCE_DIR}/adaptor/config.c DEPS pp_base
  PARSER "lib/base/opt.c:(?!type_word|add_choices|opt_help|opt_man|print_help|opt_begin).*")
pp_fuzz_target(adaptor record SOURCES ${CMAKE_SOURCE_DIR}/adaptor/record.c DEPS pp_wire pp_base
  PARSER adaptor/record.c)
