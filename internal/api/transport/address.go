// Package transport carries the Connect services: HTTP/2 over mutual TLS
// between machines, or plaintext over a unix socket within one. It tells
// handlers who the caller is.
package transport

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// Address is where a service is: a unix socket, or a host and port that speak
// TLS. The zero value is no address.
type Address struct {
	path string // of the unix socket
	host string // host:port
}

// maxSocketPath is UNIX_PATH_MAX without the final NUL (include/uapi/linux/un.h).
const maxSocketPath = 107

// ParseAddress reads unix:///PATH or https://HOST:PORT. Plaintext over TCP is
// refused.
func ParseAddress(s string) (Address, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Address{}, fmt.Errorf("address %q has no scheme; want unix:///PATH or https://HOST:PORT", s)
	}
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return Address{}, fmt.Errorf("address %q: the socket's path is not absolute; want unix:///PATH", s)
		}
		if len(rest) > maxSocketPath {
			return Address{}, fmt.Errorf("address %q: the socket's path has %d characters; at most %d are possible", s, len(rest), maxSocketPath)
		}
		return Address{path: filepath.Clean(rest)}, nil
	case "https":
		u, err := url.Parse(s)
		if err != nil {
			return Address{}, fmt.Errorf("address %q: %w", s, err)
		}
		if u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
			return Address{}, fmt.Errorf("address %q has more than a host and a port; want https://HOST:PORT", s)
		}
		if u.Port() == "" {
			return Address{}, fmt.Errorf("address %q has no port; want https://HOST:PORT", s)
		}
		return Address{host: net.JoinHostPort(u.Hostname(), u.Port())}, nil
	case "http", "tcp":
		return Address{}, fmt.Errorf("address %q is plaintext over TCP, which is not served; want https://HOST:PORT, or unix:///PATH on the same machine", s)
	}
	return Address{}, fmt.Errorf("address %q: scheme %q is not known; want unix:///PATH or https://HOST:PORT", s, scheme)
}

// String returns the address as it is parsed.
func (a Address) String() string {
	switch {
	case a.path != "":
		return "unix://" + a.path
	case a.host != "":
		return "https://" + a.host
	}
	return ""
}

// IsUnix tells whether the address is a unix socket.
func (a Address) IsUnix() bool { return a.path != "" }

// IsZero tells whether there is no address.
func (a Address) IsZero() bool { return a == Address{} }

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(b []byte) (err error) {
	*a, err = ParseAddress(string(b))
	return err
}
