package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/store"
)

// refusal is one reason why a request is refused.
type refusal struct {
	code    connect.Code
	reason  apiv1.FieldProblem_Reason
	object  string // Kind/name
	field   string
	problem string
}

// Error implements error.
func (r *refusal) Error() string {
	return strings.Join(append(nonEmpty(r.object, r.field), r.problem), ": ")
}

func refuse(code connect.Code, reason apiv1.FieldProblem_Reason, o intent.Object, field, format string, args ...any) *refusal {
	return &refusal{code, reason, intent.Reference(o.ObjectKind(), o.ObjectName()), field, fmt.Sprintf(format, args...)}
}

// severity orders codes: if a request has several faults, the code is that of
// the first to mend.
var severity = []connect.Code{
	connect.CodeInvalidArgument,
	connect.CodeNotFound,
	connect.CodeAborted,
	connect.CodeAlreadyExists,
	connect.CodeFailedPrecondition,
	connect.CodeResourceExhausted,
}

// refusals lists the leaves of a joined error; ok is false if one of them is
// not the caller's fault.
func refusals(err error) (list []*refusal, ok bool) {
	switch e := err.(type) { //nolint:errorlint // walks the tree itself
	case nil:
		return nil, true
	case *refusal:
		return []*refusal{e}, true
	case *intent.FieldError:
		return []*refusal{ofField(e)}, true
	case interface{ Unwrap() []error }:
		for _, child := range e.Unwrap() {
			l, ok := refusals(child)
			if !ok {
				return nil, false
			}
			list = append(list, l...)
		}
		return list, true
	}
	return nil, false
}

func ofField(e *intent.FieldError) *refusal {
	r := &refusal{connect.CodeInvalidArgument, apiv1.FieldProblem_REASON_INVALID, e.Object, e.Field, e.Problem}
	switch e.Reason {
	case intent.NotFound:
		r.code, r.reason = connect.CodeNotFound, apiv1.FieldProblem_REASON_NOT_FOUND
	case intent.Conflict:
		r.code, r.reason = connect.CodeAlreadyExists, apiv1.FieldProblem_REASON_CONFLICT
	case intent.Invalid:
	}
	return r
}

// answer makes an error one for the wire: all reasons as text lines, and as
// details for programs.
func answer(err error) error {
	if err == nil {
		return nil
	}
	if list, ok := refusals(err); ok && len(list) > 0 {
		return refused(list)
	}
	var ce *connect.Error
	switch {
	case errors.As(err, &ce):
		return ce
	case errors.Is(err, store.ErrTooLarge):
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("too many objects for one request, which is all or nothing: %w; split it", err))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	}
	return connect.NewError(connect.CodeUnavailable, err)
}

func refused(list []*refusal) *connect.Error {
	worst := slices.MinFunc(list, func(a, b *refusal) int {
		return cmp.Compare(slices.Index(severity, a.code), slices.Index(severity, b.code))
	})
	lines := make([]string, len(list))
	for i, r := range list {
		lines[i] = r.Error()
	}
	e := connect.NewError(worst.code, errors.New(strings.Join(slices.Compact(lines), "\n")))
	for _, r := range list {
		d, err := connect.NewErrorDetail(&apiv1.FieldProblem{Object: r.object, Field: r.field, Problem: r.problem, Reason: r.reason})
		if err == nil {
			e.AddDetail(d)
		}
	}
	return e
}
