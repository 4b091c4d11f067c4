# SPDX-License-Identifier: Apache-2.0
pp_unit_test(aws look SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_look_test.c
  DEPS pp_providers PkgConfig::OPENSSL)
pp_unit_test(aws xml SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_xml_test.c DEPS pp_providers)
pp_fuzz_target(aws answer DEPS pp_providers PARSER providers/aws/error.c
  providers/aws/ec2.c:.*parse.* "lib/loop/rest.c:rest_(parse_date|retry_after)_ms")
pp_fuzz_target(aws xml DEPS pp_providers PARSER providers/aws/xml.c)
