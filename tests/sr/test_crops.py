"""Training pictures: where they are found, and how crops are cut from them."""

import numpy as np
import pytest
import torch

from ape_sr.data.crops import CropSampler
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.data.images import write_image
from ape_sr.data.pairs import find_training_pairs
from ape_sr.data.resident import ResidentCrops
from ape_sr.errors import UserError


class TestFolders:
    @pytest.fixture
    def div2k(self, tmp_path, cat):
        for kind in ("train", "valid"):
            for i in range(2):
                hr = cat[i : i + 80]
                write_image(tmp_path / f"DIV2K_{kind}_HR" / f"000{i}.png", hr)
                lr = bicubic_downscale(hr, 2) // 2  # darker than what would be made: the file must be what is read
                write_image(tmp_path / f"DIV2K_{kind}_LR_bicubic" / "X2" / f"000{i}x2.png", lr)
        return tmp_path

    @pytest.mark.parametrize("named", [".", "DIV2K_train_HR"])
    def test_div2k_as_it_is_unpacked(self, div2k, named):
        pairs = find_training_pairs(div2k / named, 2)
        assert [(hr.parent.name, lr.name) for hr, lr in pairs] == [
            ("DIV2K_train_HR", "0000x2.png"),
            ("DIV2K_train_HR", "0001x2.png"),
        ]
        lr, hr = CropSampler([div2k / named], 2, 32, seed=0).batch(0, 4)
        assert lr.mean() < 0.6 * hr.mean()

    def test_a_scale_without_lr_pictures_makes_them(self, div2k):
        assert [lr for _, lr in find_training_pairs(div2k, 4)] == [None, None]
        lr, hr = CropSampler([div2k], 4, 32, seed=0).batch(0, 4)
        assert lr.mean().item() == pytest.approx(hr.mean().item(), rel=0.05)

    def test_a_named_lr_folder(self, div2k, photos):
        small = div2k / "DIV2K_valid_LR_bicubic" / "X2"
        assert find_training_pairs(div2k / "DIV2K_train_HR", 2, small)[1][1] == small / "0001x2.png"
        with pytest.raises(UserError, match=r"data: expected ax2 or a in .*X2, for .*a\.png"):
            find_training_pairs(photos, 2, small)

    def test_an_lr_picture_of_another_size_is_named(self, div2k, cat):
        for i in range(2):
            write_image(div2k / "DIV2K_train_LR_bicubic" / "X2" / f"000{i}x2.png", cat[:30, :30])
        with pytest.raises(UserError, match=r"x2\.png: expected 60x40, 1/2 of .*, got 30x30"):
            CropSampler([div2k], 2, 32, seed=0).batch(0, 1)

    def test_two_sets_in_one_folder_are_named(self, div2k):
        (div2k / "Other_train_HR").mkdir()
        with pytest.raises(UserError, match="got DIV2K_train_HR, Other_train_HR; name one of them"):
            find_training_pairs(div2k, 2)

    def test_little_memory_changes_nothing(self, photos, monkeypatch):
        expected = CropSampler([photos], 2, 32, seed=3).batch(0, 16)
        monkeypatch.setattr("ape_sr.data.crops.MEMORY", 1)
        sampler = CropSampler([photos], 2, 32, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(sampler.batch(0, 16), expected, strict=True))
        assert len(sampler._decoded) == 1


class TestResident:
    """Crops cut on a device that holds all pictures."""

    @pytest.mark.parametrize("folder, scale, patch", [("photos", 2, 32), ("photos", 4, 36), ("div2k", 2, 32)])
    def test_are_those_of_the_sampler(self, folder, scale, patch, photos, cat, tmp_path):
        if folder == "div2k":  # LR pictures from disk
            for i in range(3):
                write_image(tmp_path / "A_train_HR" / f"{i}.png", cat[i : i + 80])
                write_image(tmp_path / "A_train_LR_bicubic" / "X2" / f"{i}x2.png", cat[i : i + 40, :60])
        sampler = CropSampler([photos if folder == "photos" else tmp_path], scale, patch, seed=3)
        resident = ResidentCrops(sampler, torch.device("cpu"))
        for step in range(4):  # 64 crops: all eight ways to turn and mirror
            got, expected = resident.batch(step, 16), sampler.batch(step, 16)
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype
                assert a.is_contiguous(memory_format=torch.channels_last)
        assert sampler.nbytes == sum(lr.nbytes + hr.nbytes for lr, hr in sampler.load_all())


class TestSampler:
    def test_crops_are_pairs(self, sampler):
        lr, hr = sampler.batch(0, 8)
        assert lr.shape == (8, 3, 16, 16) and hr.shape == (8, 3, 32, 32)
        inner = slice(3, -3)  # crops of a downscaled picture, so their borders saw more
        for small, large in zip(lr, hr, strict=True):
            image = (large.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            again = bicubic_downscale(image, 2)[inner, inner].astype(int)
            got = (small.permute(1, 2, 0).numpy() * 255).round()[inner, inner]
            assert np.abs(again - got).max() <= 1

    def test_a_batch_depends_on_seed_and_step_alone(self, sampler, photos):
        again = CropSampler([photos], 2, 32, seed=3)
        sampler.batch(0, 4)
        assert torch.equal(sampler.batch(5, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(sampler.batch(6, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(CropSampler([photos], 2, 32, seed=4).batch(5, 4)[1], again.batch(5, 4)[1])

    def test_pictures_of_several_folders_are_drawn_equally_often(self, photos, tmp_path, cat):
        write_image(tmp_path / "other" / "black.png", np.zeros_like(cat))
        sampler = CropSampler([photos, tmp_path / "other"], 2, 32, seed=3)
        assert [hr.name for hr, _ in sampler.pairs] == ["a.png", "b.bmp", "c.webp", "black.png"]
        black = (sampler.batch(0, 200)[1].amax(dim=(1, 2, 3)) == 0).sum()
        assert 30 < black < 70  # a quarter
        with pytest.raises(UserError, match="lr-data: expected with one folder of images, got 2"):
            CropSampler([photos, photos], 2, 32, seed=3, lr_folder=photos)

    @pytest.mark.parametrize("resident", [False, True])
    def test_a_picture_cut_off_after_its_header_is_told_and_the_next_stands_in(self, photos, resident):
        data = (photos / "b.bmp").read_bytes()
        (photos / "b.bmp").write_bytes((photos / "c.webp").read_bytes())
        expected = CropSampler([photos], 2, 32, seed=3).batch(0, 16)
        (photos / "b.bmp").write_bytes(data[: len(data) // 2])
        told = []
        sampler = CropSampler([photos], 2, 32, seed=3, tell=told.append)
        assert len(sampler.pairs) == 3 and not told
        got = (ResidentCrops(sampler, torch.device("cpu")) if resident else sampler).batch(0, 16)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert len(told) == 1 and "b.bmp" in told[0] and told[0].endswith("; the next image stands in for it")
        for name in ("a.png", "c.webp"):  # the second is no picture any more
            data = (photos / name).read_bytes()
            (photos / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="data: expected images that can be decoded, none of 2 can"):
            CropSampler([photos], 2, 32, seed=3).batch(0, 16)

    def test_small_pictures_are_left_out_and_counted(self, photos):
        sampler = CropSampler([photos], 2, 50, seed=0)
        assert (len(sampler.pairs), sampler.skipped) == (2, 1)
