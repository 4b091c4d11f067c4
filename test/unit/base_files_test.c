/* SPDX-License-Identifier: Apache-2.0 */
/* Files: atomic writes, bounded reads, removal that does not leave its tree. */
#include "unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"

static char dir[64];

static int set_up(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/fs-test.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    return fs_remove_tree(AT_FDCWD, dir, NULL);
}

static void writes_are_whole_and_private(void **state)
{
    struct err err = ERR_INIT;
    struct stat st;
    char path[128], *text;
    size_t len;
    snprintf(path, sizeof(path), "%s/f", dir);
    umask(0);
    assert_int_equal(fs_write_atomic(AT_FDCWD, path, "one", 3, 0600, &err), 0);
    assert_int_equal(fs_write_atomic(AT_FDCWD, path, "three", 5, 0600, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(fs_read(AT_FDCWD, path, 5, &text, &len, &err), 0);
    assert_string_equal(text, "three");
    free(text);
    assert_int_equal(fs_read(AT_FDCWD, path, 4, &text, &len, &err), -EFBIG);
    err_clear(&err);
    assert_int_equal(fs_read(AT_FDCWD, "/dev/null", 4, &text, &len, &err), -EINVAL);
}

static void a_failed_write_leaves_the_old_file(void **state)
{
    struct err err = ERR_INIT;
    char path[128], *text, target[160];
    snprintf(path, sizeof(path), "%s/f", dir);
    assert_int_equal(fs_write_atomic(AT_FDCWD, path, "old", 3, 0600, &err), 0);
    snprintf(target, sizeof(target), "%s.new", path);
    assert_int_equal(mkdir(target, 0700), 0); /* nothing can be written beside it */
    assert_true(fs_write_atomic(AT_FDCWD, path, "new", 3, 0600, &err) < 0);
    assert_text_has(err.text, "f.new");
    err_clear(&err);
    assert_int_equal(fs_read(AT_FDCWD, path, 16, &text, NULL, &err), 0);
    assert_string_equal(text, "old");
    free(text);
}

static void removal_does_not_follow_links(void **state)
{
    struct err err = ERR_INIT;
    char tree[128], sub[160], link[192], outside[128];
    snprintf(tree, sizeof(tree), "%s/tree", dir);
    snprintf(sub, sizeof(sub), "%s/a/b", tree);
    snprintf(link, sizeof(link), "%s/link", sub);
    snprintf(outside, sizeof(outside), "%s/outside", dir);
    assert_int_equal(fs_mkdir_p(sub, 0700, &err), 0);
    assert_int_equal(mkdir(outside, 0700), 0);
    assert_int_equal(symlink(outside, link), 0);
    assert_int_equal(fs_remove_tree(AT_FDCWD, tree, &err), 0);
    assert_int_equal(access(outside, F_OK), 0);
    assert_int_equal(access(tree, F_OK), -1);
    assert_int_equal(fs_remove_tree(AT_FDCWD, tree, &err), 0);
}

static void private_directories_are_made_private(void **state)
{
    struct err err = ERR_INIT;
    struct stat st;
    char path[128];
    snprintf(path, sizeof(path), "%s/p", dir);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(fs_private_dir(path, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    char id[FS_BOOT_ID_LEN + 1];
    assert_int_equal(fs_boot_id(id, &err), 0);
    assert_int_equal(strlen(id), FS_BOOT_ID_LEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(writes_are_whole_and_private, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_failed_write_leaves_the_old_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(removal_does_not_follow_links, set_up, tear_down),
        cmocka_unit_test_setup_teardown(private_directories_are_made_private, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
