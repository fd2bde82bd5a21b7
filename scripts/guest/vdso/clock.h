/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the lab's kernel tells processes of its clocks. It stands at the end of
 * the page that holds the vDSO, which the kernel writes and processes only read.
 */
#ifndef LAB_CLOCK_H
#define LAB_CLOCK_H

#define LAB_CLOCK_OFFSET 4032 /* in a page of 4096 bytes; the vDSO needs half of it */

struct lab_clock {
	unsigned int sequence;	/* odd while it is written */
	unsigned int valid;	/* 0: ask the kernel */
	unsigned long tsc;	/* the time-stamp counter at the last update */
	unsigned long rate;	/* nanoseconds in one of its ticks, times 2^32 */
	unsigned long mono;	/* CLOCK_MONOTONIC then, in nanoseconds */
	unsigned long real;	/* what CLOCK_REALTIME is ahead of it by */
	unsigned long boot;	/* what CLOCK_BOOTTIME is ahead of it by */
};

static inline unsigned long lab_clock_tsc(void)
{
	unsigned int low, high;

	/* LFENCE keeps it from being read early (Intel SDM, RDTSC). */
	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (unsigned long)high << 32 | low;
}

static inline unsigned long lab_clock_at(const struct lab_clock *c, unsigned long tsc)
{
	unsigned long ticks = tsc > c->tsc ? tsc - c->tsc : 0;

	return c->mono + (unsigned long)((unsigned __int128)ticks * c->rate >> 32);
}

#endif
