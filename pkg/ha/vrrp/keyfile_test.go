package vrrp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadKeys(t *testing.T) {
	const long = "00112233445566778899aabbccddeeff"
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		says string // "" is success
	}{
		"two keys":   {"# of the pair\n7 " + long + "\n\n 1 " + strings.ToUpper(long) + " # old\n", 0o600, ""},
		"readable":   {"1 " + long, 0o640, "chmod 600"},
		"empty":      {"# nothing\n", 0o600, "has none"},
		"short":      {"1 0011", 0o600, "2 bytes"},
		"id":         {"x\n256 " + long, 0o600, ":1: has 1 words"},
		"large id":   {"256 " + long, 0o600, ":1: the id is not a number from 0 to 255"},
		"no hex":     {"1 zz" + long, 0o600, "not hexadecimal"},
		"twice":      {"1 " + long + "\n1 " + long, 0o600, ":2: id 1 appears twice"},
		"odd digits": {"1 " + long + "0", 0o600, "not hexadecimal"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			if err := os.WriteFile(path, []byte(tc.text), tc.mode); err != nil {
				t.Fatal(err)
			}
			keys, send, err := ReadKeys(path)
			if tc.says == "" {
				if err != nil || send != 7 || len(keys) != 2 || len(keys[1]) != 16 || keys[1][15] != 0xff {
					t.Errorf("%v, %d, %v", keys, send, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one with %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), long) {
				t.Errorf("the error tells the key: %v", err)
			}
		})
	}
	if _, _, err := ReadKeys(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was read")
	}
}

// FuzzReadKeys feeds files of keys: what is accepted can be sent with, and what is
// refused never shows a key.
func FuzzReadKeys(f *testing.F) {
	f.Add([]byte("7 000102030405060708090a0b0c0d0e0f # the one to send with\n\n8 101112131415161718191a1b1c1d1e1f\n"))
	f.Add([]byte("7 00\n7 00\n300 11\nx"))
	f.Add([]byte("# none\n"))
	path := filepath.Join(f.TempDir(), "keys")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		keys, send, err := ReadKeys(path)
		if err != nil {
			for word := range strings.FieldsSeq(string(text)) {
				if len(word) >= 16 && strings.Contains(err.Error(), word) && !strings.Contains("0123456789abcdef0123456789abcdef", word) {
					t.Errorf("%q shows what is in the file", err)
				}
			}
			return
		}
		if _, err := NewSealer(keys, send, time.Now); err != nil {
			t.Errorf("keys that are accepted cannot be sent with: %v", err)
		}
	})
}
