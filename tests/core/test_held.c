/* test_held.c - when what callbacks write is sent: after each of them, or after several.
 *
 * Calls of the callbacks and sends are noted in one line of text; the clock is the test's.
 */
#include "pl_internal.h"
#include "pl_test.h"

#include <unistd.h>

enum { STREAMS = 20 };

static struct {
    char text[256]; /* "a" to "t": a callback; "A" to "T": a send of its stream; "r": a read */
    int64_t now;
    int fds[STREAMS];
    int sendmsgs;
    size_t limit; /* a send takes no more than this; 0: no limit */
    int error;    /* what every send says, if not 0 */
} seen;

static void note(char what)
{
    size_t len = strlen(seen.text);
    CHECK_CMP(len + 1, <, sizeof(seen.text));
    seen.text[len] = what;
}

static ssize_t noted(int fd, ssize_t n)
{
    for (int i = 0; i < STREAMS; i++)
        if (seen.fds[i] == fd)
            note((char)('A' + i));
    return seen.error != 0 ? seen.error : n;
}

static ssize_t noting_send(int fd, const void *buf, size_t len, int flags)
{
    if (seen.error != 0)
        return noted(fd, 0);
    if (seen.limit != 0 && len > seen.limit)
        len = seen.limit;
    return noted(fd, pl_sys_default()->send(fd, buf, len, flags));
}

static ssize_t noting_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    seen.sendmsgs++;
    return noted(fd, pl_sys_default()->sendmsg(fd, msg, flags));
}

static int64_t noted_time(void)
{
    return seen.now;
}

struct fixture;

/* A callback that is no event's: what a task's step is. */
struct step {
    struct pl_op op;
    struct fixture *f;
    int number;
    int64_t takes;
    const char *writes; /* NULL: nothing */
    struct pl_stream *to;
    void (*act)(struct fixture *f);
};

struct fixture {
    struct pl_sys sys;
    struct pl_loop loop;
    struct pl_stream streams[STREAMS];
    int peers[STREAMS];
    struct step steps[STREAMS];
    bool echoes;
    int closes;
    int failed;
    int stop;
    char buf[4096];
};

static struct fixture *of(struct pl_stream *s)
{
    return PL_CONTAINER_OF(s->loop, struct fixture, loop);
}

static void send_text(struct pl_stream *s, const char *text)
{
    struct pl_chunk chunk = {.data = text, .len = strlen(text)};
    CHECK_OK(pl_stream_write(s, &chunk, 1));
}

static void *on_room(struct pl_stream *s, size_t hint, size_t *len)
{
    (void)hint;
    *len = sizeof(of(s)->buf);
    return of(s)->buf;
}

static void on_read(struct pl_stream *s, void *buf, ssize_t n)
{
    (void)buf;
    if (n > 0)
        note('r');
    if (n > 0 && of(s)->echoes)
        send_text(s, "echo");
}

static void on_again(struct pl_stream *s, void *buf)
{
    (void)s;
    (void)buf;
}

static void on_drained(struct pl_stream *s)
{
    (void)s;
}

static void on_failed(struct pl_stream *s, int error)
{
    of(s)->failed = error;
}

static void on_release(struct pl_stream *s, void *owner)
{
    (void)s;
    (void)owner;
}

static void on_closed(struct pl_stream *s)
{
    CHECK(!s->corked); /* its memory is the user's now */
    of(s)->closes++;
}

static const struct pl_stream_ops ops = {
    .room = on_room,
    .read = on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
};

static void step_run(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct step *step = PL_CONTAINER_OF(op, struct step, op);
    note((char)('a' + step->number));
    seen.now += step->takes;
    if (step->writes != NULL)
        send_text(step->to, step->writes);
    if (step->act != NULL)
        step->act(step->f);
}

static void start(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    memset(&seen, 0, sizeof(seen));
    seen.now = 1;
    f->sys = *pl_sys_default();
    f->sys.send = noting_send;
    f->sys.sendmsg = noting_sendmsg;
    f->sys.now = noted_time;
    CHECK_OK(pl_test_loop(&f->loop, &f->sys));
    for (int i = 0; i < STREAMS; i++) {
        int fds[2];
        CHECK_OK(f->sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
        seen.fds[i] = fds[0];
        f->peers[i] = fds[1];
        CHECK_OK(pl_stream_open(&f->loop, &f->streams[i], fds[0], true, &ops));
        f->steps[i] = (struct step){.op = {step_run},
                                    .f = f,
                                    .number = i,
                                    .takes = 1000,
                                    .writes = "text",
                                    .to = &f->streams[i]};
    }
}

static void end(struct fixture *f)
{
    for (int i = 0; i < STREAMS; i++) {
        pl_stream_forget(&f->streams[i]);
        (void)close(seen.fds[i]);
        (void)close(f->peers[i]);
    }
    pl_loop_fini(&f->loop);
}

static void turn(struct fixture *f)
{
    CHECK_OK(pl_loop_wait(&f->loop, 0));
    CHECK_OK(pl_loop_collect(&f->loop));
    CHECK_OK(pl_loop_run(&f->loop, &f->stop));
    CHECK(f->loop.corked == NULL); /* whatever happened */
}

/* Runs the first n steps in one turn, and tells what was seen. */
static const char *turn_of(struct fixture *f, int n)
{
    memset(seen.text, 0, sizeof(seen.text));
    for (int i = 0; i < n; i++)
        CHECK_OK(pl_loop_enqueue(&f->loop, &f->steps[i].op));
    turn(f);
    return seen.text;
}

static void expect_peer(struct fixture *f, int i, const char *text)
{
    char buf[4096] = {0};
    ssize_t n = f->sys.recv(f->peers[i], buf, sizeof(buf) - 1, 0);
    CHECK_EQ(n, text[0] != 0 ? (ssize_t)strlen(text) : -EAGAIN);
    CHECK(strcmp(buf, text) == 0);
}

#define EXPECT(said, text) CHECK(strcmp((said), (text)) == 0)

static void many_quick_callbacks_are_sent_for_together(void)
{
    struct fixture f;
    start(&f);
    /* Who wrote first is sent first. */
    EXPECT(turn_of(&f, 5), "abcdeABCDE");
    EXPECT(turn_of(&f, 8), "abcdefghABCDEFGH");
    EXPECT(turn_of(&f, 20), "abcdefghijklmnopqrstABCDEFGHIJKLMNOPQRST");
    /* A few would not save enough. */
    EXPECT(turn_of(&f, 4), "aAbBcCdD");
    EXPECT(turn_of(&f, 1), "aA");
    expect_peer(&f, 0, "texttexttexttexttext");
    end(&f);
}

static void writes_of_one_turn_are_one_call(void)
{
    struct fixture f;
    start(&f);
    static const char *words[] = {"one ", "two ", "three ", "four ", "five ", "six"};
    for (int i = 0; i < 6; i++) {
        f.steps[i].to = &f.streams[0];
        f.steps[i].writes = words[i];
    }
    for (int i = 6; i < 16; i++)
        f.steps[i].writes = NULL;
    EXPECT(turn_of(&f, 16), "abcdefghijklmnopA");
    expect_peer(&f, 0, "one two three four five six");
    CHECK_EQ(seen.sendmsgs, 0); /* small pieces are joined */
    end(&f);
}

static void nothing_is_held_for_long(void)
{
    struct fixture f;
    start(&f);
    for (int i = 0; i < STREAMS; i++)
        f.steps[i].takes = 200000;
    EXPECT(turn_of(&f, 20), "abcdABCDefghEFGHijklIJKLmnopMNOPqQrRsStT");
    end(&f);
}

static void rest_run(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
    note('.');
}

static void not_too_many_callbacks_are_waited_for(void)
{
    struct fixture f;
    start(&f);
    struct pl_op rest[100];
    CHECK_OK(pl_loop_enqueue(&f.loop, &f.steps[0].op));
    for (int i = 0; i < 100; i++) {
        rest[i] = (struct pl_op){rest_run};
        CHECK_OK(pl_loop_enqueue(&f.loop, &rest[i]));
    }
    turn(&f);
    CHECK_EQ(strchr(seen.text, 'A') - seen.text, 1 + 32);
    CHECK_EQ(strlen(seen.text), 102);
    end(&f);
}

static void events_are_not_waited_for(void)
{
    struct fixture f;
    start(&f);
    for (int i = 4; i < STREAMS; i++) {
        CHECK_OK(pl_stream_read_start(&f.streams[i]));
        CHECK_EQ(write(f.peers[i], "x", 1), 1);
    }
    /* What arrives meanwhile comes behind them in the turn. */
    EXPECT(turn_of(&f, 4), "abcdABCDrrrrrrrrrrrrrrrr");
    end(&f);
}

static void slow_callbacks_end_it_for_a_while(void)
{
    struct fixture f;
    start(&f);
    f.steps[1].takes = 1000000000;
    EXPECT(turn_of(&f, 5), "abABcCdDeE");
    f.steps[1].takes = 1000;
    /* Each turn of five has one chance: its first callback. */
    int turns = 0;
    while (strcmp(turn_of(&f, 5), "aAbBcCdDeE") == 0)
        CHECK_CMP(++turns, <=, 1000);
    EXPECT(seen.text, "abcdeABCDE");
    CHECK_CMP(turns, >, 10);
    end(&f);
}

static void what_an_event_makes_one_write_is_sent_at_once(void)
{
    struct fixture f;
    start(&f);
    if (f.loop.backend->input != NULL) {
        end(&f);
        PL_SKIP("the backend receives when it likes");
    }
    f.echoes = true;
    for (int i = 0; i < STREAMS; i++) {
        CHECK_OK(pl_stream_read_start(&f.streams[i]));
        CHECK_EQ(write(f.peers[i], "x", 1), 1);
    }
    turn(&f);
    CHECK_EQ(strlen(seen.text), 2 * STREAMS);
    for (int i = 0; i < STREAMS; i++) {
        CHECK_EQ(seen.text[2 * i], 'r');
        CHECK(seen.text[2 * i + 1] != 'r');
        expect_peer(&f, i, "echo");
    }
    end(&f);
}

static void stop_the_run(struct fixture *f)
{
    f->stop = 1;
}

static void a_run_that_ends_early_sends(void)
{
    struct fixture f;
    start(&f);
    f.steps[2].act = stop_the_run;
    EXPECT(turn_of(&f, 8), "abcABC");
    f.stop = 0;
    EXPECT(turn_of(&f, 0), "defghDEFGH");
    end(&f);
}

static void abort_first(struct fixture *f)
{
    pl_stream_abort(&f->streams[0]);
}

static void close_first(struct fixture *f)
{
    pl_stream_close(&f->streams[0]);
}

static void shut_first(struct fixture *f)
{
    CHECK_OK(pl_stream_shutdown(&f->streams[0]));
}

static void flush_first(struct fixture *f)
{
    pl_stream_flush(&f->streams[0]);
}

static void the_ends_of_a_held_stream(void)
{
    struct fixture f;
    start(&f);
    f.steps[2].act = abort_first;
    EXPECT(turn_of(&f, 8), "abcdefghBCDEFGH");
    turn(&f);
    CHECK_EQ(f.closes, 1);
    expect_peer(&f, 0, "");
    end(&f);

    start(&f);
    f.steps[2].act = close_first;
    EXPECT(turn_of(&f, 8), "abcdefghABCDEFGH");
    turn(&f);
    CHECK_EQ(f.closes, 1);
    expect_peer(&f, 0, "text");
    end(&f);

    start(&f);
    f.steps[2].act = shut_first;
    (void)turn_of(&f, 8);
    expect_peer(&f, 0, "text");
    char end_of_stream;
    CHECK_EQ(f.sys.recv(f.peers[0], &end_of_stream, 1, 0), 0);
    end(&f);

    start(&f);
    f.steps[2].act = flush_first; /* a user's wish comes before */
    EXPECT(turn_of(&f, 8), "abcAdefghBCDEFGH");
    end(&f);
}

static void send_all_and_close_first(struct fixture *f)
{
    static char big[PL_STREAM_FLUSH];
    struct pl_chunk chunk = {.data = big, .len = sizeof(big)};
    CHECK_OK(pl_stream_write(&f->streams[0], &chunk, 1));
    CHECK_EQ(f->streams[0].queued, 0);
    pl_stream_close(&f->streams[0]);
}

/* An event of the same turn finds a stream that has sent all and was closed. */
static void the_end_of_one_that_has_sent_all(void)
{
    struct fixture f;
    start(&f);
    f.steps[0].act = send_all_and_close_first;
    for (int i = 0; i < 8; i++) {
        CHECK_OK(pl_stream_read_start(&f.streams[i]));
        CHECK_EQ(write(f.peers[i], "x", 1), 1);
    }
    (void)turn_of(&f, 1);
    turn(&f);
    CHECK_EQ(f.closes, 1);
    end(&f);
}

static void a_failure_of_a_held_send(void)
{
    struct fixture f;
    start(&f);
    seen.error = -EPIPE;
    (void)turn_of(&f, 8);
    turn(&f);
    CHECK_EQ(f.failed, -EPIPE);
    end(&f);
}

static void a_large_write_is_not_held(void)
{
    struct fixture f;
    start(&f);
    static char big[PL_STREAM_FLUSH + 2];
    memset(big, 'b', sizeof(big) - 1);
    f.steps[1].to = &f.streams[0];
    f.steps[1].writes = big;
    EXPECT(turn_of(&f, 8), "abAcdefghCDEFGH");
    end(&f);
}

static void what_is_long_ends_the_waiting(void)
{
    struct fixture f;
    start(&f);
    static char longer[(16 << 10) + 2];
    memset(longer, 'l', sizeof(longer) - 1);
    f.steps[1].writes = longer;
    EXPECT(turn_of(&f, 12), "abABcdefghijklCDEFGHIJKL");
    end(&f);
}

static void joined_pieces_that_are_sent_in_part(void)
{
    struct fixture f;
    start(&f);
    seen.limit = 5;
    f.steps[0].writes = "abc";
    f.steps[1].writes = "defg";
    f.steps[1].to = &f.streams[0];
    EXPECT(turn_of(&f, 8), "abcdefghACDEFGH");
    seen.limit = 0;
    for (int i = 0; i < 4 && f.streams[0].queued > 0; i++)
        turn(&f);
    expect_peer(&f, 0, "abcdefg");
    end(&f);
}

static void larger_pieces_are_not_copied(void)
{
    struct fixture f;
    start(&f);
    static char half[1024];
    memset(half, 'h', sizeof(half) - 1);
    f.steps[0].writes = f.steps[1].writes = half;
    f.steps[1].to = &f.streams[0];
    (void)turn_of(&f, 8);
    CHECK_EQ(seen.sendmsgs, 1);
    char buf[4096];
    CHECK_EQ(f.sys.recv(f.peers[0], buf, sizeof(buf), 0), 2 * (sizeof(half) - 1));
    end(&f);
}

static const struct pl_test tests[] = {
    PL_TEST(many_quick_callbacks_are_sent_for_together),
    PL_TEST(writes_of_one_turn_are_one_call),
    PL_TEST(nothing_is_held_for_long),
    PL_TEST(not_too_many_callbacks_are_waited_for),
    PL_TEST(events_are_not_waited_for),
    PL_TEST(slow_callbacks_end_it_for_a_while),
    PL_TEST(what_an_event_makes_one_write_is_sent_at_once),
    PL_TEST(a_run_that_ends_early_sends),
    PL_TEST(the_ends_of_a_held_stream),
    PL_TEST(the_end_of_one_that_has_sent_all),
    PL_TEST(a_failure_of_a_held_send),
    PL_TEST(a_large_write_is_not_held),
    PL_TEST(what_is_long_ends_the_waiting),
    PL_TEST(joined_pieces_that_are_sent_in_part),
    PL_TEST(larger_pieces_are_not_copied),
};
PL_TEST_MAIN(tests)
