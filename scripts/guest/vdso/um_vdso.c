// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vDSO for User-Mode Linux that reads clocks without a system call, as that of
 * any other kernel does. The stock one makes a system call of each, which costs
 * some ten microseconds there: programs of the Go runtime, which reads clocks
 * whenever it schedules, then do little else.
 */
#include <linux/time.h>
#include <linux/getcpu.h>
#include <asm/unistd.h>

#include "clock.h"

#define NSEC 1000000000UL

static long call(long number, long first, long second)
{
	long ret;

	asm volatile("syscall" : "=a"(ret) : "0"(number), "D"(first), "S"(second) : "rcx", "r11", "memory");
	return ret;
}

/* now returns 0 where only the kernel knows a clock. */
static unsigned long now(clockid_t clock)
{
	const volatile struct lab_clock *page;
	struct lab_clock c;
	unsigned long at;

	/* This code and the page's end are in the same page. */
	asm("lea 0(%%rip), %0" : "=r"(at));
	page = (const void *)((at & ~4095UL) + LAB_CLOCK_OFFSET);
	do {
		c.sequence = page->sequence;
		c.valid = page->valid;
		c.tsc = page->tsc;
		c.rate = page->rate;
		c.mono = page->mono;
		c.real = page->real;
		c.boot = page->boot;
		at = lab_clock_tsc();
	} while (c.sequence & 1 || c.sequence != page->sequence);
	if (!c.valid)
		return 0;
	at = lab_clock_at(&c, at);
	switch (clock) {
	case 0: /* CLOCK_REALTIME */
	case 5: /* CLOCK_REALTIME_COARSE */
		return at + c.real;
	case 1: /* CLOCK_MONOTONIC */
	case 6: /* CLOCK_MONOTONIC_COARSE */
		return at;
	case 7: /* CLOCK_BOOTTIME */
		return at + c.boot;
	}
	return 0;
}

int __vdso_clock_gettime(clockid_t clock, struct __kernel_old_timespec *ts)
{
	unsigned long at = now(clock);

	if (!at)
		return call(__NR_clock_gettime, clock, (long)ts);
	ts->tv_sec = at / NSEC;
	ts->tv_nsec = at % NSEC;
	return 0;
}
int clock_gettime(clockid_t, struct __kernel_old_timespec *) __attribute__((weak, alias("__vdso_clock_gettime")));

int __vdso_gettimeofday(struct __kernel_old_timeval *tv, struct timezone *tz)
{
	unsigned long at = now(0);

	if (!at || !tv || tz)
		return call(__NR_gettimeofday, (long)tv, (long)tz);
	tv->tv_sec = at / NSEC;
	tv->tv_usec = at % NSEC / 1000;
	return 0;
}
int gettimeofday(struct __kernel_old_timeval *, struct timezone *) __attribute__((weak, alias("__vdso_gettimeofday")));

__kernel_old_time_t __vdso_time(__kernel_old_time_t *t)
{
	unsigned long at = now(0);

	if (!at)
		return call(__NR_time, (long)t, 0);
	if (t)
		*t = at / NSEC;
	return at / NSEC;
}
__kernel_old_time_t time(__kernel_old_time_t *t) __attribute__((weak, alias("__vdso_time")));

/* There is one processor. */
long __vdso_getcpu(unsigned int *cpu, unsigned int *node, struct getcpu_cache *unused)
{
	if (cpu)
		*cpu = 0;
	if (node)
		*node = 0;
	return 0;
}
long getcpu(unsigned int *cpu, unsigned int *node, struct getcpu_cache *tcache) __attribute__((weak, alias("__vdso_getcpu")));
