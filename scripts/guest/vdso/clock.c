// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's side of the lab's vDSO: with each update of its clocks it says
 * what they show, at which time-stamp, and how fast that counts. The rate is
 * measured against the machine's clock, from which the guest has its own.
 *
 * The scheduler has the machine's clock, too. Its own would count in ticks of
 * 10 ms: who runs for some microseconds at one is charged for all of it and
 * waits for the others, whatever its priority, and who runs between two is not.
 */
#include <linux/init.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/pvclock_gtod.h>
#include <linux/sched/clock.h>
#include <linux/timekeeper_internal.h>
#include <os.h>

#include "clock.h"

/* The rate is that of the last such time: long against what a reading may be late by. */
#define WINDOW (2ULL * NSEC_PER_SEC)
#define FIRST_WINDOW (200ULL * NSEC_PER_MSEC)
/* A reading with so many ticks around it was interrupted. */
#define INTERRUPTED 20000
/* Behind by a millionth, a process never sees an update set it back. */
#define SLOWER(rate) ((rate) - ((rate) >> 20))

extern struct page **vdsop;

static struct lab_clock *shared;
static struct { unsigned long tsc, ns, rate; } anchor;

/* between returns the rate of two readings. */
static unsigned long between(unsigned long ns, unsigned long ticks)
{
	for (; ns >> 31; ns >>= 1)
		ticks >>= 1;
	return ticks ? (ns << 32) / ticks : 0;
}

static void calibrate(unsigned long tsc, unsigned long ns)
{
	unsigned long rate;

	if (anchor.tsc) {
		if (ns - anchor.ns < (anchor.rate ? WINDOW : FIRST_WINDOW))
			return;
		rate = between(ns - anchor.ns, tsc - anchor.tsc);
		/* A counter that changes its pace is no clock. */
		if (anchor.rate && rate - anchor.rate + (anchor.rate >> 10) > anchor.rate >> 9)
			rate = 0;
		anchor.rate = rate;
	}
	anchor.tsc = tsc;
	anchor.ns = ns;
}

static int updated(struct notifier_block *self, unsigned long was_set, void *data)
{
	const struct tk_read_base *clock = &((struct timekeeper *)data)->tkr_mono;
	const struct timekeeper *tk = data;
	unsigned long before = lab_clock_tsc(), ns = os_nsecs(), tsc = lab_clock_tsc(), cycles, mono, told;

	if (tsc - before > INTERRUPTED)
		return NOTIFY_OK;
	calibrate(tsc, ns);
	/* The clock source counts the machine's nanoseconds, not each. */
	cycles = clock->clock->read(clock->clock) - clock->cycle_last;
	mono = ktime_to_ns(clock->base) + ((cycles * clock->mult + clock->xtime_nsec) >> clock->shift);
	told = lab_clock_at(shared, tsc);
	if (shared->valid && told > mono && told - mono < NSEC_PER_USEC)
		mono = told;

	shared->sequence++;
	barrier();
	shared->valid = anchor.rate != 0;
	shared->tsc = tsc;
	shared->rate = SLOWER(anchor.rate);
	shared->mono = mono;
	shared->real = ktime_to_ns(tk->offs_real);
	shared->boot = ktime_to_ns(tk->offs_boot);
	barrier();
	shared->sequence++;
	return NOTIFY_OK;
}

unsigned long long notrace sched_clock(void)
{
	static unsigned long long start;
	unsigned long long now = os_nsecs();

	if (!start)
		start = now;
	return now - start;
}

static struct notifier_block updates = { .notifier_call = updated };

static int __init share_clock(void)
{
	if (!vdsop)
		return 0;
	shared = page_address(*vdsop) + LAB_CLOCK_OFFSET;
	memset(shared, 0, sizeof(*shared));
	return pvclock_gtod_register_notifier(&updates);
}
late_initcall(share_clock);
