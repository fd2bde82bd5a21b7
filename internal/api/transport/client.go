package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/pki"
)

const (
	// dialTimeout bounds connecting, and the TLS handshake once more.
	dialTimeout = 5 * time.Second
	// maxSnapshot bounds what a client accepts: about 100,000 attachments.
	maxSnapshot = 64 << 20
	// maxRequest bounds what a server accepts.
	maxRequest = 4 << 20
	// compressFrom is the size from which answers are compressed. A smaller one
	// fits into a packet anyway, and clearing a compressor's tables for it took a
	// quarter of a pod's binding.
	compressFrom = 1 << 10
)

// pings find a peer that a silent network keeps from answering: a connection
// that says nothing for so long is asked, and given up if it does not answer.
var pings = http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 10 * time.Second}

// Client is how to reach an address.
type Client struct {
	// HTTP speaks HTTP/2 with it.
	HTTP *http.Client
	// BaseURL is for the constructors of Connect clients.
	BaseURL string
}

// NewClient returns a client of an address. Credentials are needed for https
// and not used for unix sockets.
func NewClient(a Address, creds *pki.Credentials) (Client, error) {
	return newClient(a, creds, pings)
}

func newClient(a Address, creds *pki.Credentials, pings http.HTTP2Config) (Client, error) {
	t := &http.Transport{
		Protocols: new(http.Protocols),
		HTTP2:     &pings,
		// No ResponseHeaderTimeout: a call's context bounds it.
		IdleConnTimeout: 2 * time.Minute,
	}
	d := &net.Dialer{Timeout: dialTimeout}
	switch {
	case a.IsUnix():
		t.Protocols.SetUnencryptedHTTP2(true)
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", a.path)
		}
		// The name is for the Host header only.
		return Client{&http.Client{Transport: t}, "http://localhost"}, nil
	case a.IsZero():
		return Client{}, errors.New("no address is given; want unix:///PATH or https://HOST:PORT")
	case creds == nil:
		return Client{}, fmt.Errorf("address %s needs a certificate bundle; issue one with `vpcproxyctl pki issue`", a)
	}
	host, _, err := net.SplitHostPort(a.host)
	if err != nil {
		return Client{}, fmt.Errorf("address %s: %w", a, err)
	}
	t.Protocols.SetHTTP2(true)
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
		defer cancel()
		// A configuration of its own for each connection, so that renewed
		// certificates are used.
		td := tls.Dialer{NetDialer: d, Config: creds.ClientConfig(host)}
		return td.DialContext(ctx, network, addr)
	}
	return Client{&http.Client{Transport: t}, a.String()}, nil
}

// ClientOptions are for every Connect client.
func ClientOptions() connect.ClientOption {
	return connect.WithReadMaxBytes(maxSnapshot)
}

// HandlerOptions are for every Connect handler.
func HandlerOptions() connect.HandlerOption {
	return connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(compressFrom))
}
