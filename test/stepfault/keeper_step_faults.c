/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Step faults of the keeper: each of its system calls failing, one at a time, and pairs, a second one
 * failing while the keeper deals with the first. Real keepers and commands; one of them is the
 * program whose steps are under control, with what it does between fork and exec.
 *
 * Afterwards the keeper has gone on, has all descriptors and starts its command again; or, where it
 * had none yet, it has ended with a message and a status that is not 0, and the others have what
 * they had. In a hand-over either of the two may be the one that serves in the end.
 *
 * What a store holds can only be seen by losing the keeper beside it: so the two of them have to be
 * together again before it is killed with its command, as their logs say.
 *
 * Sampled; STEPFAULT_STRIDE=n tries each n-th, 1 all, of pairs each n-th second one behind each n-th
 * first.
 *
 * usage: keeper_step_faults KEEPER [SCENE [fail|fail+fail [FIRST]]]
 */
#include "stepfault/stepfault.h"
#include "stepfault/world.h"
#include "unit/keeper_meeting.h"

#define PATIENCE_MS 10000
#define GONE_MS 1000
#define SETTLE_US 20000 /* for who has yet to notice that it is alone */
#define LOG_MAX 65536
#define TOLD "x=1 y=2"
#define RETRIES 3

struct trial;
static void alone(struct trial *t);

struct trial {
    struct scene *s;
    char control[PATH_MAX];
    bool exact; /* one fault at most: nothing is kept twice either */
    struct err wrong;
    void (*play)(struct trial *t);
};

static void note(struct trial *t, const char *what)
{
    if (!t->wrong.code)
        err_set(&t->wrong, -EIO, "%s", what);
}

/* ---- keepers ---- */

static const char *log_of(const struct fixture *f)
{
    static char text[LOG_MAX];
    ssize_t n = pread(f->log, text, sizeof(text) - 1, 0);

    text[MAX(n, 0)] = '\0';
    return text;
}

static void start(struct trial *t, struct fixture *f, bool store, bool faulty)
{
    const char *const words[] = {"-restart-max", "200ms", "-socket", t->s->path,
                                 "-settled",     "60s",   "--",      self_path,
                                 "child",        f->path, NULL};
    const char *const alone[] = {"-socket", t->s->path, NULL};

    if (f->log > 0)
        close(f->log);
    f->log = memfd_create("log", MFD_CLOEXEC);
    fcntl(f->log, F_SETFL, O_APPEND); /* two write to it: keeper and child */
    if (faulty)
        setenv("STEPFAULT_CONTROL", t->control, 1);
    start_keeper(f, store ? alone : words);
    unsetenv("STEPFAULT_CONTROL");
}

/* Its next child; false: it has ended, or nothing happens. */
static bool await(struct fixture *f)
{
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;

    while (!try_meet(f)) {
        if (ended(f) || clock_mono_ms() > deadline)
            return false;
        usleep(500);
    }
    return true;
}

static bool await_end(struct fixture *f)
{
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;

    while (!ended(f) && clock_mono_ms() < deadline)
        usleep(500);
    return ended(f);
}

/* A keeper without descriptors may give up, if it says so. */
static void check_given_up(struct trial *t, struct fixture *f)
{
    if (!await_end(f))
        note(t, "neither serves nor ends");
    else if (!WIFEXITED(f->status) || WEXITSTATUS(f->status) == 0)
        note(t, "has not ended by itself, or as if all were well");
    else if (!strstr(log_of(f), t->exact ? "ERROR" : "")) /* a second fault can be the word's */
        note(t, "has ended without a word");
}

/* Where two have met again, what one of them had removed may be back. */
static bool has_all(const struct trial *t, const struct fixture *f)
{
    return t->exact && t->play == alone ? str_eq(f->store, TOLD)
                                        : strstr(f->store, "x=1") && strstr(f->store, "y=2");
}

static bool tell(struct fixture *f, const char *command)
{
    return try_ask(f, command) && str_eq(f->reply, "ok");
}

/* To its child, which was never there or has what it was given. */
static bool give(struct trial *t, struct fixture *f)
{
    if (!await(f)) {
        check_given_up(t, f);
        return false;
    }
    if (tell(f, "ready") && tell(f, "add x 1") && tell(f, "add w 3") && tell(f, "add y 2") &&
        tell(f, "remove w"))
        return true;
    note(t, "its command could not talk to it");
    return false;
}

static void check_serves(struct trial *t, struct fixture *f)
{
    kill(f->child, SIGKILL);
    if (!await(f))
        note(t, "does not start its command again");
    else if (!has_all(t, f))
        note(t, f->store[0] ? f->store : "has nothing");
}

/* ---- scenes ---- */

static void alone(struct trial *t)
{
    struct fixture *f = t->s->a;

    start(t, f, false, true);
    if (!give(t, f))
        return;
    check_serves(t, f);
    if (t->wrong.code || f->keeper == 0)
        return;
    kill(f->keeper, SIGTERM);
    if (!try_hear(f, PATIENCE_MS) || !str_eq(f->reply, "signal 15"))
        note(t, "does not pass on signals");
    order(f, "exit 0");
    if (!await_end(f) || !WIFEXITED(f->status) || WEXITSTATUS(f->status) != 0)
        note(t, "does not end with its command");
}

/* a serves, b comes; true: b serves, a has ended. */
static bool hand_over(struct trial *t, bool faulty_successor)
{
    struct fixture *a = t->s->a, *b = t->s->b;
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;
    bool ready = false;
    int tries = 0;

    start(t, b, false, faulty_successor);
    while (!(ready && ended(a)) && clock_mono_ms() < deadline) {
        if (try_hear(a, 1) && str_eq(a->reply, "signal 15"))
            order(a, "exit 0");
        try_meet(a);
        if (try_meet(b)) {
            if (!has_all(t, b))
                note(t, b->store[0] ? b->store : "the successor has nothing");
            ready = tell(b, "ready");
        }
        if (try_hear(b, 1) && str_eq(b->reply, "signal 15"))
            order(b, "exit 0");
        if (!ended(b))
            continue;
        check_given_up(t, b);
        if (faulty_successor || ++tries > RETRIES)
            return false;
        ready = false;
        start(t, b, false, false); /* as kubelet would */
    }
    return ready && ended(a);
}

static void check_either(struct trial *t, bool faulty_successor)
{
    struct fixture *a = t->s->a;
    bool over = hand_over(t, faulty_successor);
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;

    if (t->wrong.code)
        return;
    if (over) {
        check_serves(t, t->s->b);
        return;
    }
    /* Back: it has a child, or is about to start one. */
    while (!ended(a) && !try_ask(a, "env") && clock_mono_ms() < deadline) {
        if (!await(a))
            break;
    }
    if (ended(a) || !ended(t->s->b))
        note(t, "neither is in charge");
    else
        check_serves(t, a);
}

static void predecessor(struct trial *t)
{
    start(t, t->s->a, false, true);
    if (give(t, t->s->a))
        check_either(t, false);
}

static void successor(struct trial *t)
{
    start(t, t->s->a, false, false);
    if (give(t, t->s->a))
        check_either(t, true);
}

static int count(const char *text, const char *what)
{
    int n = 0;

    for (const char *at = text; (at = strstr(at, what)); at++)
        n++;
    return n;
}

/* As far as it knows, f is with another one. */
static bool is_joined(const struct fixture *f)
{
    const char *text = log_of(f);

    return count(text, ": with a ") > count(text, "at the other end is gone");
}

/* The one without faults says so, and still does a moment later. */
static void await_joined(struct trial *t, const struct fixture *f)
{
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;
    int seen = 0;

    while (seen < 2 && clock_mono_ms() < deadline) {
        seen = is_joined(f) ? seen + 1 : 0;
        usleep(SETTLE_US);
    }
    if (seen < 2)
        note(t, "store and keeper are not together");
}

/* The container is killed; the next one has all from the store. */
static void check_store(struct trial *t, struct fixture *client)
{
    struct fixture *next = t->s->b;

    if (t->wrong.code)
        return;
    kill_container(client);
    start(t, next, false, false);
    if (!await(next))
        note(t, "the next keeper does not start its command");
    else if (!has_all(t, next))
        note(t, next->store[0] ? next->store : "the store has nothing");
}

static bool is_there(struct trial *t, struct fixture *store)
{
    int64_t deadline = clock_mono_ms() + PATIENCE_MS;

    while (access(t->s->path, F_OK) < 0 && !ended(store) && clock_mono_ms() < deadline)
        usleep(500);
    if (!ended(store))
        return true;
    check_given_up(t, store);
    return false;
}

static void store(struct trial *t)
{
    struct fixture *a = t->s->a, *kept = t->s->stores[0];

    start(t, kept, true, true);
    if (!is_there(t, kept))
        return;
    start(t, a, false, false);
    for (int tries = 0; !await(a) && tries < RETRIES; tries++)
        start(t, a, false, false); /* refused by a store with a fault: as kubelet would */
    if (!tell(a, "add x 1") || !tell(a, "add w 3") || !tell(a, "add y 2") || !tell(a, "remove w"))
        note(t, "the keeper beside it does not work");
    await_joined(t, a);
    check_store(t, a);
}

/* Its store dies too, and another one comes. */
static void client(struct trial *t)
{
    struct fixture *a = t->s->a;

    start(t, t->s->stores[0], true, false);
    if (!is_there(t, t->s->stores[0]))
        return;
    start(t, a, false, true);
    if (!give(t, a))
        return;
    await_joined(t, t->s->stores[0]);
    kill_keeper(t->s->stores[0]);
    int64_t deadline = clock_mono_ms() + GONE_MS;
    while (is_joined(a) && clock_mono_ms() < deadline)
        usleep(500);
    start(t, t->s->stores[1], true, false);
    for (int tries = 0; tries < RETRIES && ended(t->s->stores[1]); tries++)
        start(t, t->s->stores[1], true, false);
    await_joined(t, t->s->stores[1]);
    check_store(t, a);
}

/* ---- the runner's side ---- */

static int run(void *arg, _unused_ struct err *err)
{
    struct trial *t = arg;

    t->wrong = ERR_INIT;
    set_scene((void **)&t->s);
    t->play(t);
    return 0;
}

static void print_logs(struct trial *t)
{
    struct fixture *all[] = {t->s->a, t->s->b, t->s->stores[0], t->s->stores[1]};
    static const char *const names[] = {"a", "b", "first store", "second store"};

    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        if (all[i]->log > 0)
            fprintf(stderr, "-- %s:\n%s", names[i], log_of(all[i]));
}

/* Of keepers that were killed, or could not remove it. */
static void remove_queues(const char *dir)
{
    char path[PATH_MAX];
    DIR *d = opendir(dir);

    for (struct dirent *e; d && (e = readdir(d));)
        if (str_starts(e->d_name, "peerpod-keeper.")) {
            (void)snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
            fs_remove_tree(AT_FDCWD, path, NULL);
        }
    if (d)
        closedir(d);
}

/* Whatever they are doing. */
static void end_all(struct trial *t)
{
    struct fixture *all[] = {t->s->a, t->s->b, t->s->c, t->s->stores[0], t->s->stores[1]};

    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        if (all[i]->keeper > 0)
            kill_keeper(all[i]);
        if (all[i]->child > 0)
            kill(all[i]->child, SIGKILL);
        if (all[i]->log > 0)
            close(all[i]->log);
    }
    strike_scene((void **)&t->s);
    t->s = NULL;
    remove_queues("/run"); /* both are our own */
    remove_queues("/tmp");
}

static int recover(void *arg, _unused_ int result, struct err *err)
{
    struct trial *t = arg;

    if (t->s && t->wrong.code)
        print_logs(t);
    if (t->s)
        end_all(t);
    return t->wrong.code ? err_set(err, t->wrong.code, "%s", t->wrong.text) : 0;
}

static const struct scene_row {
    const char *name;
    void (*play)(struct trial *t);
    unsigned stride, pair_stride;
} scenes[] = {
    {"alone", alone, 3, 29}, {"predecessor", predecessor, 7, 41}, {"successor", successor, 7, 41},
    {"store", store, 7, 53}, {"client", client, 7, 43},
};

static unsigned try_all(struct trial *t, const struct scene_row *row, bool pairs, uint64_t first)
{
    uint64_t stride = pairs ? row->pair_stride : row->stride;
    char name[64];

    if (getenv("STEPFAULT_STRIDE"))
        (void)str_to_u64(getenv("STEPFAULT_STRIDE"), 1000, &stride);
    struct stepfault_case c = {.name = name,
                               .mode = STEPFAULT_FAIL,
                               .pair = pairs ? STEPFAULT_FAIL : STEPFAULT_OFF,
                               .pair_stride = pairs ? (unsigned)stride : 0,
                               .run = run,
                               .recover = recover,
                               .first = (unsigned)first,
                               .stride = (unsigned)stride};

    (void)snprintf(name, sizeof(name), "keeper %s, %s", row->name, pairs ? "fail+fail" : "fail");
    t->play = row->play;
    t->exact = !pairs;
    return stepfault_run(&c, t);
}

int main(int argc, char **argv)
{
    static struct trial t;
    static char *none[] = {"", "", NULL};
    unsigned wrong = 0;
    uint64_t first = 1;

    stepfault_mute();
    if (argc == 3 && str_eq(argv[1], "child"))
        return child_main(argv[2]);
    if (argc < 2 || (argc > 4 && str_to_u64(argv[4], 100000, &first) < 0))
        return 2;
    world_enter();
    none[1] = argv[1];
    if (keeper_world_main(2, none) >= 0)
        return 1;
    if (mount("tmpfs", "/tmp", "tmpfs", 0, NULL) < 0 || access(self_path, X_OK) < 0) {
        fprintf(stderr, "keeper_step_faults: needs a /tmp of its own, with no program in it\n");
        return 1;
    }
    (void)snprintf(t.control, sizeof(t.control), "/tmp/control");
    if (!stepfault_share(t.control))
        return 1;
    for (size_t i = 0; i < ARRAY_SIZE(scenes); i++)
        for (int pairs = 0; pairs < 2; pairs++)
            if ((argc < 3 || str_eq(argv[2], scenes[i].name)) &&
                (argc < 4 || str_eq(argv[3], pairs ? "fail+fail" : "fail")))
                wrong += try_all(&t, &scenes[i], pairs, first);
    return wrong ? 1 : 0;
}
