package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Fingerprint returns a number that changes when somebody changes a legacy
// table of the namespace, and 0 where there is none. The kernel announces no
// such change, so it has to be polled for; this costs microseconds and no
// process. Packet counters do not count. Of a table of more than 1 MiB only the
// number and size of its rules count. Numbers are comparable within one process.
//
// Changes in iptables-nft's tables are announced by nftables events instead.
func (b *Backend) Fingerprint(ctx context.Context, netns string) (uint64, error) {
	var sum uint64
	err := b.in(ctx, netns, "look for changes", func() (err error) {
		sum, _, err = legacySum()
		return err
	})
	return sum, err
}

var seed = maphash.MakeSeed()

// legacySum hashes all legacy tables of the calling thread's namespace. whole
// says that no rule was left out.
func legacySum() (sum uint64, whole bool, err error) {
	var h maphash.Hash
	h.SetSeed(seed)
	whole = true
	any := false
	for _, f := range families {
		names, err := legacyTables(f)
		if err != nil || len(names) == 0 {
			if err != nil {
				return 0, false, err
			}
			continue
		}
		any = true
		w, err := hashTables(&h, f, names)
		if err != nil {
			return 0, false, err
		}
		whole = whole && w
	}
	if !any {
		return 0, true, nil
	}
	return h.Sum64(), whole, nil
}

// layout is where the kernel's structures differ between the families
// (include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h).
type layout struct {
	domain, level int
	next          int // offset of next_offset in struct ipt_entry
	comefrom      int
	counters      int
}

var layouts = map[nat.Family]layout{
	nat.IPv4: {unix.AF_INET, unix.SOL_IP, 90, 92, 96},
	nat.IPv6: {unix.AF_INET6, unix.SOL_IPV6, 142, 144, 152},
}

const (
	optInfo    = 64 // IPT_SO_GET_INFO and IP6T_SO_GET_INFO
	optEntries = 65 // IPT_SO_GET_ENTRIES and IP6T_SO_GET_ENTRIES

	nameLen     = 32 // XT_TABLE_MAXNAMELEN
	infoLen     = 84 // struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
	sizeAt      = infoLen - 4
	headerLen   = 40 // struct ipt_get_entries before its entries, on 64 bits
	countersLen = 16 // struct xt_counters

	// maxTable is the size up to which a table is read whole: about 5,000
	// rules, 1 ms.
	maxTable = 1 << 20
)

func hashTables(h *maphash.Hash, f nat.Family, names []string) (whole bool, err error) {
	l := layouts[f]
	// Any socket of the family does.
	fd, err := unix.Socket(l.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open a socket to read legacy tables: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // was only read from
	whole = true
	for _, name := range names {
		w, err := hashTable(h, fd, l, name)
		if errors.Is(err, unix.ENOENT) {
			continue // unloaded meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("read legacy table %s of %s: %w", name, f, err)
		}
		whole = whole && w
	}
	return whole, nil
}

// resizes is how often a table may change its size while it is read.
const resizes = 5

func hashTable(h *maphash.Hash, fd int, l layout, name string) (whole bool, err error) {
	for range resizes {
		info := make([]byte, infoLen)
		copy(info, name)
		if err := getsockopt(fd, l.level, optInfo, info); err != nil {
			return false, err
		}
		size := int(binary.NativeEndian.Uint32(info[sizeAt:]))
		if size > maxTable {
			_, _ = h.Write(info) // never fails
			return false, nil
		}
		entries := make([]byte, headerLen+size)
		copy(entries, name)
		binary.NativeEndian.PutUint32(entries[nameLen:], uint32(size))
		err := getsockopt(fd, l.level, optEntries, entries)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return false, err
		}
		l.mask(entries[headerLen:])
		_, _ = h.Write(info)
		_, _ = h.Write(entries)
		return true, nil
	}
	return false, unix.EAGAIN
}

// mask clears what changes by itself: counters, and what the kernel leaves in
// comefrom.
func (l layout) mask(entries []byte) {
	for len(entries) >= l.counters+countersLen {
		next := int(binary.NativeEndian.Uint16(entries[l.next:]))
		clear(entries[l.comefrom : l.comefrom+4])
		clear(entries[l.counters : l.counters+countersLen])
		if next < l.counters+countersLen || next > len(entries) {
			return
		}
		entries = entries[next:]
	}
}

// getsockopt passes a buffer that the kernel reads and writes, which package
// unix has no call for.
func getsockopt(fd, level, option int, buf []byte) error {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(buf)
	if errno != 0 {
		return errno
	}
	return nil
}
