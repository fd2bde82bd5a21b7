package transport

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/vpcproxy/vpcproxy/internal/pki"
)

// Peer is who is at the other end of a call.
type Peer struct {
	// Local is a caller on a unix socket: root, or the user whose process
	// serves it.
	Local bool
	UID   uint32
	// Identity is of the certificate, where the caller is not local.
	Identity pki.Identity
}

// String is for logs: operator/alice, or uid/0.
func (p Peer) String() string {
	if p.Local {
		return fmt.Sprintf("uid/%d", p.UID)
	}
	return p.Identity.String()
}

type peerKey struct{}

// PeerFrom returns the caller of the call that ctx belongs to. There is none,
// and ok is false, outside of Serve.
func PeerFrom(ctx context.Context) (p Peer, ok bool) {
	p, ok = ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// WithPeer returns a context for a call of p.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*localConn); ok {
		return WithPeer(ctx, Peer{Local: true, UID: l.uid})
	}
	return ctx
}

// withPeer tells the handler of TLS callers, whose certificates are known only
// after the handshake, and refuses whoever is neither.
func withPeer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := PeerFrom(r.Context()); ok {
			h.ServeHTTP(w, r)
			return
		}
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "a client certificate is needed", http.StatusUnauthorized)
			return
		}
		id, err := pki.IdentityOf(r.TLS.PeerCertificates[0])
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r.WithContext(WithPeer(r.Context(), Peer{Identity: id})))
	})
}
