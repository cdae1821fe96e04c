/* test_uring_refused.c - io_uring on a kernel that refuses it, has less of it, or runs short.
 */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <linux/io_uring.h>
#include <unistd.h>

#include "pl_uring.h"

/* ---- a kernel that refuses ------------------------------------------------------------ */

/* A few messages of both sizes and a wake-up, whatever the backend. */
static void check_it_works(struct pl_loop *loop)
{
    struct reader r;
    size_t sent = 0;
    int peer = open_reader(loop, &r, true);
    struct stint stint = {loop, &r, peer, &sent};
    (void)work(&stint);
    pl_loop_wake(loop);
    CHECK_OK(pl_loop_wait(loop, -1));
    close(peer);
    RUN_UNTIL(loop, r.ended);
    close_reader(loop, &r, -1);
}

static void a_refusal_means_epoll(void)
{
    int errors[] = {-ENOSYS, -EPERM, -EACCES, -ENOMEM, -EMFILE, -ENFILE, -EINVAL, -EAGAIN};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        for (int stage = 0; stage < 4; stage++) {
            struct pl_sys sys = system_with_less();
            switch (stage) {
            case 0:
                kernel.setup_error = errors[i];
                break;
            case 1:
                kernel.mmap_error = errors[i];
                break;
            case 2:
                kernel.memfd_error = errors[i];
                break;
            case 3:
                kernel.register_op = IORING_REGISTER_PROBE;
                kernel.register_error = errors[i];
                break;
            }
            struct pl_loop loop;
            CHECK_OK(open_loop(&loop, &sys));
            CHECK(strcmp(pl_loop_backend_name(&loop), "epoll") == 0);
            CHECK_CMP(loop.refused, <, 0);
            if (stage == 0)
                CHECK_EQ(loop.refused, errors[i]);
            check_it_works(&loop);
            pl_loop_fini(&loop);
        }
    }
}

static void features_that_are_missing_mean_epoll(void)
{
    NEED_RING();
    uint32_t features[] = {IORING_FEAT_SINGLE_MMAP, IORING_FEAT_NODROP, IORING_FEAT_SUBMIT_STABLE,
                           IORING_FEAT_RW_CUR_POS, IORING_FEAT_EXT_ARG};
    for (size_t i = 0; i < PL_ARRAY_LEN(features); i++) {
        struct pl_sys sys = system_with_less();
        kernel.features_off = features[i];
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        CHECK(strcmp(pl_loop_backend_name(&loop), "epoll") == 0);
        CHECK_EQ(loop.refused, -EOPNOTSUPP);
        check_it_works(&loop);
        pl_loop_fini(&loop);
    }
}

/* A kernel that does not know one of the flags: the others are used as far as they go together,
 * and those of before 5.11 are taken for granted. */
static void each_flag_may_be_unknown(void)
{
    NEED_RING();
    const uint32_t deferred = PL__URING_SINGLE | PL__URING_DEFERRED;
    static const struct {
        uint32_t flag;
        const char *backend;
        bool deferred;
    } cases[] = {
        {0, "uring", true},
        {PL__URING_DEFERRED, "uring", false},
        {PL__URING_SINGLE, "uring", false},
        {PL__URING_TASKRUN_FLAG, "uring", false},
        {1u << 8, "uring", true},  /* COOP_TASKRUN */
        {1u << 7, "uring", false}, /* SUBMIT_ALL */
        {IORING_SETUP_R_DISABLED, "epoll", false},
        {IORING_SETUP_CQSIZE, "epoll", false},
        {IORING_SETUP_CLAMP, "epoll", false},
    };
    for (size_t i = 0; i < PL_ARRAY_LEN(cases); i++) {
        struct pl_sys sys = system_with_less();
        kernel.known_flags = ~cases[i].flag;
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        CHECK(strcmp(pl_loop_backend_name(&loop), cases[i].backend) == 0);
        CHECK_EQ((kernel.setup_flags & deferred) == deferred, cases[i].deferred);
        CHECK_EQ(loop.backend->input != NULL, cases[i].deferred);
        check_it_works(&loop);
        pl_loop_fini(&loop);
    }
}

/* What is to be submitted goes with the call that waits, and so does the timeout. */
static void one_call_submits_and_waits(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    turn(&loop);
    struct reader r;
    int peer = open_reader(&loop, &r, true);
    kernel.enters = 0;
    kernel.most_submitted = 0;
    int64_t began = sys.now();
    CHECK_EQ(pl_loop_wait(&loop, 5000000), 0);
    CHECK_CMP(sys.now() - began, >=, 5000000);
    CHECK_EQ(kernel.enters, 1);
    CHECK_CMP(kernel.most_submitted, >, 0);
    CHECK_EQ(kernel.enter_flags, IORING_ENTER_EXT_ARG | IORING_ENTER_GETEVENTS);
    /* With nothing to submit and nothing done there is no call at all. */
    CHECK_EQ(pl_loop_wait(&loop, 0), 0);
    CHECK_EQ(kernel.enters, 1);
    close_reader(&loop, &r, peer);
    pl_loop_fini(&loop);
}

static void older_kernels_do_with_less(void)
{
    NEED_RING();
    const uint32_t base = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
    uint32_t known[] = {base, base | 1u << 7 | 1u << 8 | 1u << 9};
    for (size_t i = 0; i < PL_ARRAY_LEN(known); i++) {
        struct pl_sys sys = system_with_less();
        kernel.known_flags = known[i];
        kernel.hide_op = 59; /* waiting for an epoll set came last */
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        CHECK(strcmp(pl_loop_backend_name(&loop), "uring") == 0);
        CHECK(loop.backend->input == NULL);
        check_it_works(&loop);
        CHECK_CMP(kernel.recvs, >, 0);
        pl_loop_fini(&loop);
    }
    /* Buffers cannot be registered. */
    struct pl_sys sys = system_with_less();
    kernel.register_op = IORING_REGISTER_PBUF_RING;
    kernel.register_error = -EINVAL;
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    CHECK(loop.backend->input == NULL);
    check_it_works(&loop);
    pl_loop_fini(&loop);
}

static void a_shortage_while_it_runs_passes(void)
{
    NEED_RING();
    int errors[] = {-EINTR, -EAGAIN, -EBUSY, -ETIME};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        struct pl_sys sys = system_with_less();
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        struct reader r;
        size_t sent = 0;
        int peer = open_reader(&loop, &r, true);
        for (int k = 0; k < 50; k++) {
            send_some(peer, &sent, 200);
            kernel.enter_error = errors[i];
            RUN_UNTIL(&loop, r.got == sent);
        }
        kernel.enter_error = errors[i]; /* the cancel that frees the file goes with the next */
        close_reader(&loop, &r, peer);
        pl_loop_fini(&loop);
    }
}

static const struct pl_test tests[] = {
    PL_TEST(a_refusal_means_epoll),      PL_TEST(features_that_are_missing_mean_epoll),
    PL_TEST(each_flag_may_be_unknown),   PL_TEST(one_call_submits_and_waits),
    PL_TEST(older_kernels_do_with_less), PL_TEST(a_shortage_while_it_runs_passes),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
