package vrrp

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ReadKeys reads a file of keys: a line for each, its id and the key in
// hexadecimal. What follows # is a comment. send is the id on the first line, the
// one to send with. A file that others than its owner may read is refused.
func ReadKeys(path string) (keys Keys, send uint8, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fmt.Errorf("vrrp: keys: %w", err)
	}
	if others := info.Mode().Perm() & 0o077; others != 0 {
		return nil, 0, fmt.Errorf("vrrp: keys: %s may be read by others than its owner (mode %#o): chmod 600 it, and change the keys", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("vrrp: keys: %w", err)
	}
	keys = Keys{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		id, key, err := parseKey(words)
		if _, twice := keys[id]; err == nil && twice {
			err = fmt.Errorf("id %d appears twice", id)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("vrrp: keys: %s:%d: %w", path, n, err)
		}
		if len(keys) == 0 {
			send = id
		}
		keys[id] = key
	}
	if len(keys) == 0 {
		return nil, 0, fmt.Errorf("vrrp: keys: %s has none: give a line such as `1 %s`", path, strings.Repeat("0123456789abcdef", 2))
	}
	return keys, send, keys.check()
}

// parseKey never repeats what it was given: it may be a key.
func parseKey(words []string) (id uint8, key []byte, err error) {
	if len(words) != 2 {
		return 0, nil, fmt.Errorf("has %d words: want an id and a key", len(words))
	}
	n, err := strconv.ParseUint(words[0], 10, 8)
	if err != nil {
		return 0, nil, fmt.Errorf("the id is not a number from 0 to 255")
	}
	if key, err = hex.DecodeString(words[1]); err != nil {
		return 0, nil, fmt.Errorf("the key is not hexadecimal, two digits for each byte")
	}
	return uint8(n), key, nil
}
