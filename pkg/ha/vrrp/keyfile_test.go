package vrrp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
