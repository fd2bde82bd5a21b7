package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Attributes and values of policy rules (include/uapi/linux/fib_rules.h).
const (
	sizeofRuleHdr = 12

	fraPriority          = 6
	fraFwmark            = 10
	fraFlow              = 11
	fraSuppressIfgroup   = 13
	fraSuppressPrefixlen = 14
	fraTable             = 15
	fraFwmask            = 16
	fraPad               = 18
	fraProtocol          = 21

	frActToTable = 1
)

func (h *handle) Rules(ctx context.Context) ([]Rule, error) {
	var all []Rule
	err := h.use(ctx, func() (err error) {
		all, err = h.rules(ctx)
		return err
	})
	return all, err
}

func (h *handle) rules(ctx context.Context) ([]Rule, error) {
	request := make([]byte, sizeofRuleHdr) // any family
	all, err := dumpAll(ctx, h.conn, unix.RTM_GETRULE, request, parseRule)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return all, nil
}

// parseRule reads a struct fib_rule_hdr and its attributes.
func parseRule(body []byte) (Rule, bool, error) {
	if len(body) < sizeofRuleHdr {
		return Rule{}, false, errTruncated
	}
	if body[0] != unix.AF_INET && body[0] != unix.AF_INET6 {
		return Rule{}, false, nil // multicast routing has rules of its own
	}
	r := Rule{
		IPv6:  body[0] == unix.AF_INET6,
		Table: uint32(body[4]),
		// A prefix, a TOS, another action, inversion.
		Other: body[1] != 0 || body[2] != 0 || body[3] != 0 || body[7] != frActToTable ||
			native.Uint32(body[8:])&unix.FIB_RULE_INVERT != 0,
	}
	err := walk(body, sizeofRuleHdr, func(typ uint16, v []byte) error { return r.parseAttribute(typ, v) })
	return r, err == nil, err
}

func (r *Rule) parseAttribute(typ uint16, v []byte) (err error) {
	var n uint32
	switch typ {
	case fraPriority:
		r.Priority, err = getU32(v)
	case fraFwmark:
		r.Mark, err = getU32(v)
	case fraFwmask:
		r.Mask, err = getU32(v)
	case fraTable:
		r.Table, err = getU32(v)
	case fraProtocol:
		r.Protocol, err = getU8(v)
	case fraSuppressPrefixlen, fraSuppressIfgroup:
		n, err = getU32(v)
		r.Other = r.Other || n != ^uint32(0) // all ones is "not set"
	case fraFlow:
		n, err = getU32(v)
		r.Other = r.Other || n != 0
	case fraPad:
	default: // interfaces, addresses, ports, users and what is yet to come
		r.Other = true
	}
	return err
}

func (r Rule) String() string {
	return fmt.Sprintf("rule %d: fwmark %#x/%#x lookup %d", r.Priority, r.Mark, r.Mask, r.Table)
}

// Validate says why AddRules would refuse the rule.
func (r Rule) Validate() error {
	switch {
	case r.Other:
		return fmt.Errorf("rules with further selectors can be listed only")
	case r.Protocol == 0:
		return fmt.Errorf("the protocol is missing, which says whose rule it is")
	case r.Table == 0:
		return fmt.Errorf("the table is missing")
	}
	return nil
}

func putRule(m *message, typ, flags uint16, seq uint32, r Rule) {
	m.begin(typ, flags, seq)
	family := uint8(unix.AF_INET)
	if r.IPv6 {
		family = unix.AF_INET6
	}
	m.u8(family, 0, 0, 0)
	m.u8(unix.RT_TABLE_UNSPEC, 0, 0, frActToTable)
	m.u32(0)
	m.attrU32(fraPriority, r.Priority)
	m.attrU32(fraTable, r.Table)
	m.attrU8(fraProtocol, r.Protocol)
	if r.Mark|r.Mask != 0 {
		m.attrU32(fraFwmark, r.Mark)
		m.attrU32(fraFwmask, r.Mask)
	}
	m.end()
}

// AddRules leaves it to the kernel to find the same rule of the same protocol
// (rule_exists in net/core/fib_rules.c).
func (h *handle) AddRules(ctx context.Context, rs []Rule) []error {
	return h.useBatch(ctx, len(rs), func(i int) string { return "add " + rs[i].String() }, func() []error {
		errs := batchValid(ctx, h.conn, rs, Rule.Validate, func(r Rule, m *message, seq uint32) {
			putRule(m, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, seq, r)
		})
		for _, i := range failedWith(errs, isExist) {
			errs[i] = nil
		}
		return errs
	})
}

func (h *handle) ruleSet(ctx context.Context) (map[Rule]bool, error) {
	all, err := h.rules(ctx)
	if err != nil {
		return nil, err
	}
	set := make(map[Rule]bool, len(all))
	for _, r := range all {
		set[r] = true
	}
	return set, nil
}

// DeleteRules looks first whether the rules are there: the kernel takes a selector
// that is not given for "any".
func (h *handle) DeleteRules(ctx context.Context, rs []Rule) []error {
	return h.useBatch(ctx, len(rs), func(i int) string { return "delete " + rs[i].String() }, func() []error {
		errs := make([]error, len(rs))
		have, err := h.ruleSet(ctx)
		var present []int
		for i, r := range rs {
			if errs[i] = r.Validate(); errs[i] != nil {
				continue
			}
			if errs[i] = err; err == nil && have[r] {
				present = append(present, i)
			}
		}
		rest := pick(rs, present)
		deleted := h.conn.batch(ctx, len(rest), func(i int, m *message, seq uint32) {
			putRule(m, unix.RTM_DELRULE, 0, seq, rest[i])
		})
		for i, err := range deleted {
			errs[present[i]] = absentIsSuccess(classify(err))
		}
		return errs
	})
}
