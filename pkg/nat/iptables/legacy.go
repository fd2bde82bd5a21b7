package iptables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// What /proc shows of the calling thread's network namespace. /proc/net would
// be that of the process.
const (
	procNames4 = "/proc/thread-self/net/ip_tables_names"
	procNames6 = "/proc/thread-self/net/ip6_tables_names"
	procIfInet = "/proc/thread-self/net/if_inet6"
)

// legacyTables returns the legacy tables that exist in the calling thread's
// namespace.
func legacyTables(f nat.Family) ([]string, error) {
	path := procNames4
	if f == nat.IPv6 {
		path = procNames6
	}
	out, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the module is not loaded
	}
	if err != nil {
		return nil, fmt.Errorf("list legacy tables: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// hasIPv6 says whether the calling thread's namespace has IPv6. A kernel
// started with ipv6.disable=1 has not.
func hasIPv6() bool {
	_, err := os.Stat(procIfInet)
	return err == nil
}
