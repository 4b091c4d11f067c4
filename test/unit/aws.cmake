# SPDX-License-Identifier: Apache-2.0
pp_unit_test(aws sigv4 SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_sigv4_test.c
  DEPS pp_providers PkgConfig::OPENSSL)
if(BUILD_TESTING)
  target_compile_definitions(test_aws_sigv4 PRIVATE
    PP_CORPUS_DEFAULT="${CMAKE_SOURCE_DIR}/../shared/corpus")
endif()
pp_unit_test(aws client SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_client_test.c
  DEPS pp_providers PkgConfig::OPENSSL)
