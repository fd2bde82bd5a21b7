package kerneltest

import (
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

func TestFakeKeepsTheContract(t *testing.T) {
	Contract(t, func(t *testing.T) kernel.Host {
		f := New()
		t.Cleanup(func() { _ = f.Close() })
		return f
	})
}
