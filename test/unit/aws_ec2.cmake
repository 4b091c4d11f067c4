# SPDX-License-Identifier: Apache-2.0
pp_unit_test(aws xml SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_xml_test.c DEPS pp_providers)
pp_fuzz_target(aws xml SOURCES ${CMAKE_CURRENT_LIST_DIR}/../fuzz/aws_xml_fuzz.c DEPS pp_providers
  CORPUS ${CMAKE_CURRENT_LIST_DIR}/../fuzz/corpus/aws_xml)
