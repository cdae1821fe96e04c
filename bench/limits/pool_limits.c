/* pool_limits.c - what a pool of processes cannot beat on this machine, as JSON.
 *
 *   round trip                  a word goes to another process and back: one side spins, so no
 *                               call of the system is made. The figures with futexes, on two
 *                               cores and on one, are what a parked worker costs.
 *   64 MiB and 1 MiB array      one copy by memcpy into memory that is there already.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The word says whose turn it is: odd, the child's. */
struct shared {
    _Alignas(128) _Atomic uint32_t word;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    (void)sched_setaffinity(0, sizeof(set), &set); /* refused: it runs where it is put */
}

/* Passes the turn. Release: partner is await_turn's acquire. */
static void pass(struct shared *s, uint32_t turn, int parks)
{
    atomic_store_explicit(&s->word, turn, memory_order_release);
    if (parks)
        (void)syscall(SYS_futex, &s->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void await_turn(struct shared *s, uint32_t turn, int parks)
{
    uint32_t seen;
    while ((seen = atomic_load_explicit(&s->word, memory_order_acquire)) != turn)
        if (parks)
            (void)syscall(SYS_futex, &s->word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

#define BATCH 50
#define BATCHES 41

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Microseconds of a round trip between two processes, the median of some batches; -1 when
 * there is no second process. */
static double ping_pong(int here, int there, int parks)
{
    struct shared *s =
        mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED)
        return -1;
    pid_t pid = fork();
    if (pid < 0)
        return -1;
    if (pid == 0) {
        pin(there);
        for (uint32_t i = 0; i < BATCH * BATCHES; i++) {
            await_turn(s, 2 * i + 1, parks);
            pass(s, 2 * i + 2, parks);
        }
        _exit(0);
    }
    pin(here);
    double took[BATCHES];
    uint32_t i = 0;
    for (int batch = 0; batch < BATCHES; batch++) {
        double start = now();
        for (uint32_t end = i + BATCH; i < end; i++) {
            pass(s, 2 * i + 1, parks);
            await_turn(s, 2 * i + 2, parks);
        }
        took[batch] = (now() - start) / BATCH * 1e6;
    }
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    munmap(s, sizeof(*s));
    qsort(took, BATCHES, sizeof(*took), by_value);
    return took[BATCHES / 2];
}

/* Seconds of one copy into memory that other processes could map. */
static double copy_time(size_t size, int times)
{
    char *from = malloc(size);
    char *to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (from == NULL || to == MAP_FAILED)
        return -1;
    memset(from, 1, size);
    memset(to, 2, size);
    double best = 1e9;
    for (int i = 0; i < times; i++) {
        double start = now();
        memcpy(to, from, size);
        /* So that the copy is not taken out. */
        __asm__ volatile("" : : "r"(to) : "memory");
        double took = now() - start;
        best = took < best ? took : best;
    }
    munmap(to, size);
    free(from);
    return best;
}

int main(void)
{
    cpu_set_t set;
    int cores[2] = {-1, -1};
    int n = 0;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    for (int i = 0; i < CPU_SETSIZE && n < 2; i++)
        if (CPU_ISSET(i, &set))
            cores[n++] = i;
    double small = copy_time(1 << 20, 200);
    double large = copy_time(64 << 20, 5);
    double same = ping_pong(cores[0], cores[0], 1);
    printf("{\"64 MiB array, out and back\": %.3f, \"1 MiB array, out and back\": %.3f, "
           "\"futex, one core\": %.3f",
           2.0 * (64 << 20) / large / 1e9, small * 1e6, same);
    if (n == 2)
        printf(", \"round trip\": %.3f, \"futex, two cores\": %.3f",
               ping_pong(cores[0], cores[1], 0), ping_pong(cores[0], cores[1], 1));
    printf("}\n");
    return 0;
}
