package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/internal/pki"
)

// drain is how long a server that ends waits for calls in progress. Streams
// never end by themselves, so this is about plain calls.
const drain = 3 * time.Second

// Listener accepts connections at an address; whoever may not connect is
// turned away before a byte is read.
type Listener struct {
	net.Listener
	addr Address
}

// Address returns where the listener listens: with the port chosen, if it was
// 0.
func (l *Listener) Address() Address {
	if l.addr.IsUnix() {
		return l.addr
	}
	return Address{host: l.Addr().String()}
}

// Listen opens an address. A unix socket has mode 0600 and serves root and the
// user of this process; one left behind by a process that died is replaced,
// one that is in use is an error. Credentials are needed for https.
func Listen(ctx context.Context, a Address, creds *pki.Credentials, log *slog.Logger) (*Listener, error) {
	var lc net.ListenConfig
	switch {
	case a.IsUnix():
		if err := removeStale(ctx, a); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(a.path), 0o755); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		l, err := lc.Listen(ctx, "unix", a.path)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		// Until here others could connect, to be turned away by Accept.
		if err := os.Chmod(a.path, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: %w", a, err), l.Close())
		}
		return &Listener{&localListener{Listener: l, owner: uint32(os.Geteuid()), log: log}, a}, nil //nolint:gosec // a uid is not negative
	case a.IsZero():
		return nil, errors.New("no address to listen on is given; want unix:///PATH or https://HOST:PORT")
	case creds == nil:
		return nil, fmt.Errorf("listening on %s needs a certificate bundle; issue one with `vpcproxyctl pki issue`", a)
	}
	l, err := lc.Listen(ctx, "tcp", a.host)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return &Listener{tls.NewListener(l, creds.ServerConfig()), a}, nil
}

func removeStale(ctx context.Context, a Address) error {
	st, err := os.Lstat(a.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", a, err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: the path is not a socket; move it away", a)
	}
	d := net.Dialer{Timeout: time.Second}
	if c, err := d.DialContext(ctx, "unix", a.path); err == nil {
		return errors.Join(fmt.Errorf("listen on %s: another process serves it", a), c.Close())
	}
	if err := os.Remove(a.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen on %s: remove the stale socket: %w", a, err)
	}
	return nil
}

// localListener accepts root and the user of this process.
type localListener struct {
	net.Listener
	owner   uint32
	log     *slog.Logger
	refused sync.Once
}

func (l *localListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && (uid == 0 || uid == l.owner) {
			return &localConn{c, uid}, nil
		}
		l.refused.Do(func() {
			l.log.Warn("connection refused: only root and the socket's owner may use it", "socket", l.Addr(), "uid", uid, "err", err)
		})
		_ = c.Close()
	}
}

type localConn struct {
	net.Conn
	uid uint32
}

func peerUID(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is not a unix connection", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	return cred.Uid, nil
}

// Serve answers with h until the context ends: then streams are ended at once
// and calls in progress get a moment. It closes the listeners.
func Serve(ctx context.Context, h http.Handler, log *slog.Logger, listeners ...*Listener) error {
	// Streams end with base, which the end of ctx cancels.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // plain JSON by curl
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // only unix sockets are unencrypted: see Listen
	srv := &http.Server{
		Handler:   withPeer(h),
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100,
			SendPingTimeout:      pings.SendPingTimeout,
			PingTimeout:          pings.PingTimeout,
		},
		// No ReadTimeout and WriteTimeout: they would end streams. Message
		// sizes are limited (HandlerOptions), and dead peers are pinged.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	results := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { results <- srv.Serve(l) }()
	}
	var errs []error
	waiting := len(listeners)
	select {
	case <-ctx.Done():
	case err := <-results:
		waiting--
		errs = append(errs, fmt.Errorf("serve: %w", err))
	}
	cancel()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer done()
	if err := srv.Shutdown(stop); err != nil {
		errs = append(errs, srv.Close())
	}
	for range waiting {
		if err := <-results; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, fmt.Errorf("serve: %w", err))
		}
	}
	return errors.Join(errs...)
}
