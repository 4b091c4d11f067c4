/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: blocks come before bytes and go back, spans end at the wrap. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "relay/ring.h"

#define SIZE (4 * RING_BLOCK)

struct fixture {
    int fd;
    void *map;
    struct ring ring;
};

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));

    f->fd = memfd_create("ring", MFD_CLOEXEC);
    assert_int_equal(ftruncate(f->fd, RING_BLOCK + SIZE), 0);
    f->map = mmap(NULL, RING_BLOCK + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    assert_ptr_not_equal(f->map, MAP_FAILED);
    ring_init(&f->ring, f->fd, RING_BLOCK, (uint8_t *)f->map + RING_BLOCK, SIZE);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    munmap(f->map, RING_BLOCK + SIZE);
    close(f->fd);
    free(f);
    return 0;
}

static size_t blocks(const struct fixture *f)
{
    struct stat st;
    assert_int_equal(fstat(f->fd, &st), 0);
    return (size_t)st.st_blocks * 512 / RING_BLOCK;
}

static void sizes(void **state)
{
    assert_true(ring_size_ok(RING_SIZE_MIN));
    assert_true(ring_size_ok(RING_SIZE_MAX));
    assert_false(ring_size_ok(0));
    assert_false(ring_size_ok(RING_SIZE_MIN / 2));
    assert_false(ring_size_ok(RING_SIZE_MIN + 1));
    assert_false(ring_size_ok((uint64_t)RING_SIZE_MAX * 2));
}

static void room_allocates_a_block_ahead(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ring_room(&f->ring, 0, SIZE), RING_BLOCK);
    assert_int_equal(blocks(f), 1);
    assert_int_equal(ring_room(&f->ring, RING_BLOCK - 10, SIZE), RING_BLOCK + 10);
    assert_int_equal(blocks(f), 2);
    assert_int_equal(ring_room(&f->ring, 5, 7), 7);
    assert_int_equal(ring_room(&f->ring, SIZE - 10, SIZE), 10); /* the wrap */
    assert_int_equal(blocks(f), 3);
}

static void reserve_across_the_wrap(void **state)
{
    struct fixture *f = *state;
    char in[100], out[100];

    for (size_t i = 0; i < sizeof(in); i++)
        in[i] = (char)i;
    assert_int_equal(ring_reserve(&f->ring, 3 * SIZE - 50, 100), 0);
    assert_int_equal(blocks(f), 2);
    ring_put(&f->ring, 3 * SIZE - 50, in, 100);
    ring_get(&f->ring, 3 * SIZE - 50, out, 100);
    assert_memory_equal(in, out, 100);
    assert_int_equal(ring_span(&f->ring, 3 * SIZE - 50, 100), 50);
    assert_int_equal(*ring_at(&f->ring, 3 * SIZE), 50);
    assert_int_equal(ring_reserve(&f->ring, 77, SIZE), 0);
    assert_int_equal(blocks(f), 4);
}

static void trim_keeps_what_is_in_use(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ring_reserve(&f->ring, 0, SIZE), 0);
    memset(f->ring.base, 0x5a, SIZE);
    ring_trim(&f->ring, SIZE - 1, SIZE + 1); /* last byte and first byte */
    assert_int_equal(blocks(f), 2);
    assert_int_equal(*ring_at(&f->ring, SIZE - 1), 0x5a);
    assert_int_equal(*ring_at(&f->ring, SIZE), 0x5a);
    ring_trim(&f->ring, 10, SIZE + 5); /* all but 5 bytes, so nothing */
    assert_int_equal(blocks(f), 2);
    ring_trim(&f->ring, 7, 7);
    assert_int_equal(blocks(f), 0);
    assert_int_equal(ring_room(&f->ring, 0, 1), 1);
    assert_int_equal(blocks(f), 1);
}

static void trim_finds_a_predecessors_blocks(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ring_reserve(&f->ring, 0, SIZE), 0);
    ring_init(&f->ring, f->fd, RING_BLOCK, f->ring.base, SIZE);
    ring_trim(&f->ring, 0, 1);
    assert_int_equal(blocks(f), 1);
}

static void room_uses_what_is_there_when_full(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ring_room(&f->ring, 0, 1), 1);
    f->ring.fd = -1; /* no more blocks */
    assert_int_equal(ring_room(&f->ring, 100, SIZE), RING_BLOCK - 100);
    assert_int_equal(ring_room(&f->ring, RING_BLOCK, 1), -EBADF);
    assert_int_equal(ring_reserve(&f->ring, 100, RING_BLOCK), -EBADF);
    f->ring.fd = f->fd;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test_setup_teardown(room_allocates_a_block_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(reserve_across_the_wrap, setup, teardown),
        cmocka_unit_test_setup_teardown(trim_keeps_what_is_in_use, setup, teardown),
        cmocka_unit_test_setup_teardown(trim_finds_a_predecessors_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(room_uses_what_is_there_when_full, setup, teardown),
    };
    return cmocka_run_group_tests_name("relay.ring", tests, NULL, NULL);
}
