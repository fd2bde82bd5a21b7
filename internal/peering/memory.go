package peering

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
)

// Memory is what outlives an agent: what it believed, and in which life of the
// machine.
type Memory struct {
	// Boot is the machine's boot id (proc(5), /proc/sys/kernel/random/boot_id):
	// after another boot, the kernel forwards nothing of what was announced.
	Boot   string      `json:"boot"`
	Routes []bgp.Route `json:"routes"`
}

// LoadMemory reads what an earlier agent kept; the zero Memory if there was
// none. A file that cannot be read is an error, and worth less than starting.
func LoadMemory(file string) (Memory, error) {
	var m Memory
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return Memory{}, fmt.Errorf("what BGP knew before cannot be restored from %s: %w", file, err)
	}
	return m, nil
}

// Save replaces the file, so that whoever reads it finds the whole of this one
// or of the one before.
func (m Memory) Save(file string) (err error) {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("keep what BGP knows: %w", err), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
