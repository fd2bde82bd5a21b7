package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// codec carries one field of a Config from and to text.
type codec struct {
	kind string // for help and documentation
	list bool
	set  func(c *Config, texts []string) error
	get  func(c *Config) []string
}

// scalar makes a codec of one value. The empty text is the zero value.
func scalar[T comparable](kind string, field func(*Config) *T, parse func(string) (T, error), format func(T) string) codec {
	return codec{
		kind: kind,
		set: func(c *Config, texts []string) error {
			var v T
			if texts[0] != "" {
				var err error
				if v, err = parse(texts[0]); err != nil {
					return err
				}
			}
			*field(c) = v
			return nil
		},
		get: func(c *Config) []string {
			var zero T
			if *field(c) == zero {
				return []string{""}
			}
			return []string{format(*field(c))}
		},
	}
}

// listOf makes a codec of a list.
func listOf[T comparable](kind string, field func(*Config) *[]T, parse func(string) (T, error), format func(T) string) codec {
	return codec{
		kind: kind,
		list: true,
		set: func(c *Config, texts []string) error {
			list, errs := make([]T, 0, len(texts)), make([]error, 0, len(texts))
			for _, t := range texts {
				v, err := parse(t)
				if err == nil && slices.Contains(list, v) {
					err = fmt.Errorf("%s appears twice", t)
				}
				list, errs = append(list, v), append(errs, err)
			}
			*field(c) = list
			return errors.Join(errs...)
		},
		get: func(c *Config) []string {
			out := make([]string, 0, len(*field(c)))
			for _, v := range *field(c) {
				out = append(out, format(v))
			}
			return out
		},
	}
}

func plain(s string) (string, error) { return s, nil }

func self(s string) string { return s }

func text(kind string, field func(*Config) *string) codec {
	return scalar(kind, field, plain, self)
}

func texted(field func(*Config) *[]string) codec {
	return listOf("list", field, plain, self)
}

func words(field func(*Config) *[]string, allowed ...string) codec {
	return listOf("list", field, oneOf(allowed...), self)
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("%q is not known; want %s", s, enumerate(words))
		}
		return s, nil
	}
}

func enum(field func(*Config) *string, words ...string) codec {
	return scalar(strings.Join(words, "|"), field, oneOf(words...), self)
}

func enumerate(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func roles(field func(*Config) *[]intent.Role) codec {
	parse := oneOf(string(intent.RoleFunction), string(intent.RoleProxy), string(intent.RoleController), string(intent.RoleReflector))
	return listOf("roles", field,
		func(s string) (intent.Role, error) { w, err := parse(s); return intent.Role(w), err },
		func(r intent.Role) string { return string(r) })
}

func address(field func(*Config) *netip.Addr) codec {
	return scalar("address", field, func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return a, fmt.Errorf("%q is not an IP address such as 192.168.80.8", s)
		}
		return a, nil
	}, netip.Addr.String)
}

func addresses(field func(*Config) *[]netip.Addr) codec {
	return listOf("addresses", field, func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return a, fmt.Errorf("%q is not an IP address such as 192.168.4.9", s)
		}
		return a, nil
	}, netip.Addr.String)
}

func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a CIDR such as 10.244.1.0/24", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s has host bits set; did you mean %s?", p, p.Masked())
	}
	return p, nil
}

func cidr(field func(*Config) *netip.Prefix) codec {
	return scalar("CIDR", field, parseCIDR, netip.Prefix.String)
}

func cidrs(field func(*Config) *[]netip.Prefix) codec {
	return listOf("CIDRs", field, parseCIDR, netip.Prefix.String)
}

func number(field func(*Config) *uint32) codec {
	return scalar("number", field, parseNumber, func(n uint32) string { return strconv.FormatUint(uint64(n), 10) })
}

func mask(field func(*Config) *uint32) codec {
	return scalar("mask", field, parseNumber, func(n uint32) string { return fmt.Sprintf("%#x", n) })
}

func parseNumber(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number from 0 to 4294967295, or 0x and hexadecimal digits", s)
	}
	return uint32(n), nil
}

func boolean(field func(*Config) *bool) codec {
	c := scalar("true|false", field, func(s string) (bool, error) {
		if _, err := oneOf("true", "false")(s); err != nil {
			return false, err
		}
		return s == "true", nil
	}, strconv.FormatBool)
	// false is a value, not "unset".
	c.get = func(c *Config) []string { return []string{strconv.FormatBool(*field(c))} }
	return c
}

func duration(field func(*Config) *time.Duration) codec {
	return scalar("duration", field, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration with its unit, such as 30s or 1m30s", s)
		}
		return d, nil
	}, time.Duration.String)
}

var levels = []string{"debug", "info", "warn", "error"}

func level(field func(*Config) *slog.Level) codec {
	word := oneOf(levels...)
	c := scalar(strings.Join(levels, "|"), field, func(s string) (slog.Level, error) {
		var l slog.Level
		if _, err := word(s); err != nil {
			return l, err
		}
		return l, l.UnmarshalText([]byte(s))
	}, nil)
	// Level 0 is info, not "unset".
	c.get = func(c *Config) []string { return []string{strings.ToLower(field(c).String())} }
	return c
}
