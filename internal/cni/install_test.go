package cni

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ProgramName)
	for range 2 { // the second replaces the first
		if err := Install(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o755 || !bytes.Equal(got, self) {
		t.Errorf("installed %d bytes of %d, %v, %v", len(got), len(self), info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := Install(filepath.Join(dir, "none")); err == nil {
		t.Error("installed into a directory that does not exist")
	}
}
