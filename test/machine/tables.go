package machine

import (
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/test/lab"
)

// Real returns a machine on the real kernel, for a test of what has no
// counterpart in memory.
func Real(t *testing.T, needs ...lab.Need) *Machine {
	t.Helper()
	lab.Require(t, needs...)
	return real(t)
}

// Tables returns the nftables of a machine on the real kernel.
func (m *Machine) Tables(t testing.TB) *nft.Tables {
	t.Helper()
	names := filepath.Join(filepath.Dir(filepath.Dir(m.own)), "netns")
	return nft.New(slog.New(slog.DiscardHandler), nft.Options{NetnsDir: names, Own: m.own})
}

// NFT runs a command of nft(8) in a namespace, as another agent would.
func (m *Machine) NFT(t testing.TB, netns, command string) string {
	t.Helper()
	var out []byte
	err := m.Run(t.Context(), netns, func() (err error) {
		if out, err = exec.Command("nft", command).CombinedOutput(); err != nil {
			return fmt.Errorf("nft %s: %w\n%s", command, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
