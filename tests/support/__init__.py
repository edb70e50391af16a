"""What the tests share: fakes and small files made by hand."""
