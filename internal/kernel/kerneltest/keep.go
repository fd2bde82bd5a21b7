package kerneltest

import (
	"context"
	"io"
)

// kept is one call of Keep.
type kept struct {
	netns string
	stop  context.CancelFunc
	done  <-chan struct{}
}

// Keep implements kernel.Host. What is opened is in the namespace of the test.
func (f *Fake) Keep(ctx context.Context, name string, open func() (io.Closer, error)) (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(ctx, "Keep"); err != nil {
		return nil, err
	}
	if f.spaces[name] == nil {
		return nil, noNamespace(name)
	}
	c, err := open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	closed := make(chan struct{})
	f.kept = append(f.kept, kept{name, cancel, closed})
	go func() {
		defer close(closed)
		<-ctx.Done()
		_ = c.Close()
	}()
	return closed, nil
}
