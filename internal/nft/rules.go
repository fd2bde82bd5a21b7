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
	if ct, ok := want.(*expr.Ct); ok {
		return sameCt(*ct, have.data)
	}
	got, ok := reflect.New(reflect.TypeOf(want).Elem()).Interface().(expr.Any)
	if !ok || expr.Unmarshal(unix.NFPROTO_INET, have.data, got) != nil {
		return false
	}
	return reflect.DeepEqual(want, got)
}

// sameCt does what the library's decoder does not: tell a setting from a
// reading.
func sameCt(want expr.Ct, data []byte) bool {
	var got expr.Ct
	direction := false
	err := nested(data, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			got.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_SREG:
			got.Register, got.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DREG:
			got.Register = ad.Uint32()
		case unix.NFTA_CT_DIRECTION:
			direction = true // a zone for one direction only
		}
	})
	return err == nil && !direction && got == want
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
	case *expr.Verdict, *expr.Immediate:
		return "immediate"
	case *expr.Ct:
		return "ct"
	case *expr.Reject:
		return "reject"
	}
	return "" // no expression has this name
}
