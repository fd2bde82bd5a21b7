package main

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// watchEvery is how often a routeWatch looks.
	watchEvery = 10 * time.Millisecond
	// watchBuffer holds the kernel's messages of more routes than are measured.
	watchBuffer = 512 << 20
)

// routeWatch sees when routes are written, at the cost of a system call each time it
// looks: the kernel queues a message of each, which nobody reads meanwhile.
type routeWatch struct {
	fd      int
	queued  uint32 // bytes
	changed time.Time
}

// newRouteWatch watches the network namespace that it is called in.
func newRouteWatch() (*routeWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)}),
	)
	if err != nil {
		return nil, fmt.Errorf("watch routes: %w", errors.Join(err, unix.Close(fd)))
	}
	return &routeWatch{fd: fd}, nil
}

// look returns when messages were last seen to come.
func (w *routeWatch) look() (time.Time, error) {
	var memory [9]uint32 // SK_MEMINFO_VARS (include/uapi/linux/sock_diag.h); the first is what is queued
	size := uint32(unsafe.Sizeof(memory))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(w.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&memory)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return time.Time{}, fmt.Errorf("watch routes: %w", errno)
	}
	if memory[0] != w.queued {
		w.queued, w.changed = memory[0], time.Now()
	}
	return w.changed, nil
}

// routes reads what was queued, and returns how many routes were added.
func (w *routeWatch) routes() (added int, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return added, nil
		case err != nil: // ENOBUFS: some were lost
			return added, fmt.Errorf("watch routes: %w", err)
		case n >= unix.SizeofNlMsghdr && *(*uint16)(unsafe.Pointer(&buf[4])) == unix.RTM_NEWROUTE:
			added++
		}
	}
}

func (w *routeWatch) close() error { return unix.Close(w.fd) }
