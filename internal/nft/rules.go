package nft

import (
	"reflect"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// splitExprs splits NFTA_RULE_EXPRESSIONS into the expressions.
func splitExprs(b []byte) ([]actualExpr, error) {
	var exprs []actualExpr
	var inner error
	err := nested(b, func(ad *netlink.AttributeDecoder) {
		e, err := splitExpr(ad.Bytes())
		if err != nil {
			inner = err
		}
		exprs = append(exprs, e)
	})
	if err == nil {
		err = inner
	}
	return exprs, err
}

func splitExpr(b []byte) (actualExpr, error) {
	var e actualExpr
	err := nested(b, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			e.name = ad.String()
		case unix.NFTA_EXPR_DATA:
			e.data = ad.Bytes()
		}
	})
	return e, err
}

// sameRule reports whether the kernel's rule is ours. Expressions are compared
// decoded, because the kernel adds attributes with their defaults and newer
// kernels add more; but one that the library does not know is never overlooked.
func sameRule(want rule, have []actualExpr) bool {
	if len(want) != len(have) {
		return false
	}
	for i, w := range want {
		if !sameExpr(w, have[i]) {
			return false
		}
	}
	return true
}

func sameExpr(want expr.Any, have actualExpr) bool {
	if exprName(want) != have.name {
		return false
	}
	got, ok := reflect.New(reflect.TypeOf(want).Elem()).Interface().(expr.Any)
	if !ok || expr.Unmarshal(unix.NFPROTO_INET, have.data, got) != nil {
		return false
	}
	return reflect.DeepEqual(want, got)
}

// exprName returns the kernel's name of an expression that our rules have.
func exprName(e expr.Any) string {
	switch e.(type) {
	case *expr.Meta:
		return "meta"
	case *expr.Cmp:
		return "cmp"
	case *expr.Payload:
		return "payload"
	case *expr.Bitwise:
		return "bitwise"
	case *expr.Lookup:
		return "lookup"
	case *expr.Objref:
		return "objref"
	case *expr.Notrack:
		return "notrack"
	case *expr.Verdict:
		return "immediate"
	}
	return "" // no expression has this name
}
