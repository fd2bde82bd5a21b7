package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1/vpcproxyv1alpha1connect"
	"github.com/vpcproxy/vpcproxy/internal/pki"
)

// authorizer lets operators use ControlService, nodes AgentService, and local
// callers both. What a node may say is checked further by AgentService.
type authorizer struct{}

var _ connect.Interceptor = authorizer{}

func authorize(ctx context.Context, procedure string) error {
	p, ok := transport.PeerFrom(ctx)
	if !ok {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("the caller is not known"))
	}
	service, _, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	switch {
	case p.Local:
		return nil
	case service == vpcproxyv1alpha1connect.ControlServiceName && p.Identity.Has(pki.RoleOperator):
		return nil
	case service == vpcproxyv1alpha1connect.AgentServiceName && p.Identity.Has(pki.RoleNode):
		return nil
	}
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s may not call %s: operators have ControlService, nodes AgentService", p, procedure))
}

// WrapUnary implements connect.Interceptor.
func (authorizer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := authorize(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (authorizer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := authorize(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}

// WrapStreamingClient implements connect.Interceptor; it does nothing.
func (authorizer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
