package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzFile feeds configuration files: each problem names its key or its line, and
// what is accepted has a value for every key that is accepted again.
func FuzzFile(f *testing.F) {
	for _, s := range settings {
		f.Setenv(s.env(), "")
	}
	f.Setenv(configEnv, "")
	f.Add([]byte(full))
	f.Add([]byte("roles: [function]\nlog: {level: loud}\nsteering: {markMask: 0x3fff}\n"))
	f.Add([]byte("nod: a\nbgp: {neighbors: [{}]}\n---\nroles: []\n"))
	path := filepath.Join(f.TempDir(), "c.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		flags := pflag.NewFlagSet("fuzz", pflag.ContinueOnError)
		AddFlags(flags)
		if err := flags.Set(configFlag, path); err != nil {
			t.Fatal(err)
		}
		c, err := Load(flags)
		if err != nil {
			named(t, err)
			return
		}
		for _, s := range settings {
			if err := s.codec.set(&Config{}, s.codec.get(c)); err != nil {
				t.Errorf("%s: its value %q is refused: %v", s.key, s.codec.get(c), err)
			}
		}
	})
}

// named wants each problem to name its key, or the file.
func named(t *testing.T, err error) {
	t.Helper()
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range all.Unwrap() {
			named(t, e)
		}
		return
	}
	var e *Error
	if errors.As(err, &e) && e.Key != "" && e.Problem != "" || strings.Contains(err.Error(), "c.yaml") {
		return
	}
	t.Errorf("%q names neither a key nor a line", err)
}
