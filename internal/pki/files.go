package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// absent returns ErrExists if there is something at path.
func absent(path string) error {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return fmt.Errorf("%s %w", path, ErrExists)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for %s: %w", path, err)
	}
	return nil
}

// writeBundle makes a new directory appear as a whole. In one that exists the
// files are replaced one by one; who reads them in between finds a key that
// does not fit the certificate, and keeps what he had (Credentials).
func writeBundle(dir string, files map[string][]byte) error {
	if _, err := os.Lstat(dir); err == nil {
		return writeFiles(dir, files)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*") // mode 0700
	if err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	err = writeFiles(tmp, files)
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make the bundle %s: %w", dir, err), os.RemoveAll(tmp))
	}
	return syncDir(filepath.Dir(dir))
}

func writeFiles(dir string, files map[string][]byte) error {
	var errs []error
	for name, b := range files {
		errs = append(errs, writeFile(filepath.Join(dir, name), b))
	}
	return errors.Join(errs...)
}

// writeFile replaces a file with one of mode 0600, so that a crash leaves the
// old content or the new.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
